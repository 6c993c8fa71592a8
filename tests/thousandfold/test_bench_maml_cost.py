import itertools

import pytest

from learner import rehearsal
from state import config
from thousandfold.bench import maml_cost

SETTINGS = config.parse("""
[learner]
rows_per_step = 12
dedup_rows = 1024
window_rows = 100
[embedding]
capacity = 1024
[model]
personal_features = ["user", "item"]
scenario_features = ["user"]
[features]
categories = [{ name = "user", source = "user_id" }, { name = "item", source = "item_id" }]
numbers = [{ name = "price", source = "item.price" }]
""")


def messages(count: int) -> list[bytes]:
    return [rehearsal.message(SETTINGS, i, seed=i).value for i in range(count)]


def test_both_loops_train_on_every_message_and_only_one_adapts() -> None:
    found = maml_cost.loops(SETTINGS)
    for loop, source in found.values():
        source.messages = [rehearsal.message(SETTINGS, i, seed=i) for i in range(4)]
        while loop.once():
            pass
    on, off = (found[mode][0] for mode in ("on", "off"))
    assert on.trained_rows == off.trained_rows > 0
    assert (on.trainer.dense != off.trainer.dense).any()


def test_the_cost_is_the_share_of_the_rate_that_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    took = {"on": [4.0] * 6, "off": [3.0] * 6}
    monkeypatch.setattr(maml_cost, "seconds", lambda *_: took)
    said = maml_cost.cost(SETTINGS, messages(12), 6, lambda _: None)
    assert (said.value, said.target, said.passed) == (0.25, 0.25, True)


def test_every_turn_of_both_is_timed_and_the_first_part_is_not() -> None:
    ticks = itertools.count()
    took = maml_cost.seconds(SETTINGS, messages(8), 3, lambda: float(next(ticks)))
    assert took == {"on": [1.0] * 3, "off": [1.0] * 3}


def test_too_few_messages_are_refused() -> None:
    with pytest.raises(ValueError, match="too few for 24 turns; preload more with --lists"):
        maml_cost.cost(SETTINGS, [b""] * 47)
