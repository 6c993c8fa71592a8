"""`bench retrieval`: searched before learned, nothing from the future, and ranks as one would count them."""

import numpy as np
import pytest

from state import config
from thousandfold.bench import protocol, quality, retrieval

TEXT = """
[model]
name = "two_tower"
embedding_width = 4
hidden = [8, 8]
[embedding]
capacity = 8192
init_scale = 0.3
[meta]
inner_rate = 5.0
[features]
categories = [
  { name = "user", source = "user_id" },
  { name = "item", source = "item_id" },
  { name = "scenario", source = "scenario" },
  { name = "category", source = "item.category" },
  { name = "last_items", source = "recent.item", max_values = 5, share = "item" },
]
"""
DECLARED = config.parse(TEXT)


def test_a_rank_counts_what_is_above_and_half_of_the_equals_and_leaves_out_what_was_shown() -> None:
    score = np.array([[5.0, 4.0, 3.0, 2.0], [1.0, 1.0, 1.0, -np.inf], [1.0, 2.0, 3.0, -np.inf]])
    ranks = retrieval.rank(score, np.array([2, 1, 3]), [[0], [], []])
    assert ranks.tolist() == [1, 1, retrieval.NEVER]


def test_figures_are_those_of_the_ranks() -> None:
    found = retrieval.figures(np.array([0, 9, 10, 49, 50, retrieval.NEVER]))
    assert found == pytest.approx((2 / 6, 4 / 6, (1 + 1 / np.log2(11)) / 6))


@pytest.fixture(scope="module")
def log() -> retrieval.Log:
    events = quality.open_log(DECLARED, "simulate", None, 3000)
    return retrieval.log_of(protocol.prepare(DECLARED, events, protocol.Lag()))


def test_a_history_is_what_the_user_did_strictly_before(log: retrieval.Log) -> None:
    known, lengths = retrieval.Catalogue(log), []
    for row in log.acted.tolist():
        known.read(row)
        before = known.before(row)
        same = (log.user[log.acted] == log.user[row]) & (log.ts[log.acted] < log.ts[row])
        assert before.tolist() == log.acted[same].tolist()
        lengths.append(len(before))
    assert max(lengths) > 1
    assert known.count.sum() == known.recent.sum() == len(log.acted) - 1


def test_every_action_is_searched_by_every_method_and_the_same_seed_finds_the_same(log: retrieval.Log) -> None:
    first, second = (retrieval.measure(DECLARED, log, retrieval.Options()) for _ in range(2))
    assert set(first.of) == {"popular", "recently popular", "unadapted", "adapted"}
    for name, ranks in first.of.items():
        assert len(ranks) == len(log.acted) == len(first.history)
        assert ranks.tolist() == second.of[name].tolist()
    assert (first.of["adapted"] != first.of["unadapted"]).any()
