import asyncio
from types import SimpleNamespace
from typing import Any

import aiokafka
import pytest

from state import config as configuration
from streams import agents, app, faust_fetch, faust_stage, prometheus_metrics

CONFIG = configuration.parse("[join]\nidle_timeout_s = 0.01")
AT = aiokafka.TopicPartition("impressions", 0)


class Consumer:
    """What the shell looks at of Faust's and aiokafka's consumers."""

    def __init__(self, highwater: int | None, position: int, fetched: int, committed: int | None, earliest: int) -> None:
        state = SimpleNamespace(highwater=highwater, position=position, timestamp=fetched, has_valid_position=True)
        assignment = SimpleNamespace(state_value=lambda _: state)
        self._subscription = SimpleNamespace(subscription=SimpleNamespace(assignment=assignment))
        self._thread = SimpleNamespace(_consumer=self)
        self._committed_offset = {AT: committed}
        self._earliest = earliest

    def assignment(self) -> set[Any]:
        return {AT}

    async def earliest_offsets(self, *at: Any) -> dict[Any, int]:
        return dict.fromkeys(at, self._earliest)


def shell(looked: int = 1_000, **seen: Any) -> faust_stage.Shell:
    """A shell that has looked at its partition once, at `looked`, the idle timeout before the test does."""
    consumer = Consumer(**{"committed": None, "earliest": 0, "position": 0, "fetched": 1_000, **seen})
    made = faust_stage.Shell(CONFIG, SimpleNamespace(consumer=consumer), None, None, prometheus_metrics.Metrics())  # type: ignore[arg-type]
    made.now_ms = lambda: 1_000  # type: ignore[method-assign]
    asyncio.run(made.locate([("impressions", 0)]))
    assert not made.is_caught_up("impressions", 0, looked)
    return made


@pytest.mark.parametrize(
    ("seen", "caught_up"),
    [
        ({"highwater": 0}, True),
        ({"highwater": 7}, False),
        ({"highwater": 7, "committed": 7}, True),
        ({"highwater": 7, "earliest": 7}, True),
        ({"highwater": 7, "committed": 3, "earliest": 6}, False),
        ({"highwater": None, "committed": 7}, False),
        ({"highwater": 7, "committed": 7, "fetched": 1}, False),
    ],
)
def test_a_partition_is_caught_up_when_all_up_to_a_recent_end_was_taken(seen: dict[str, Any], caught_up: bool) -> None:
    assert shell(**seen).is_caught_up("impressions", 0, 1_010) is caught_up


def test_a_partition_whose_messages_wait_in_a_queue_is_not_caught_up_however_long_it_was_silent_for() -> None:
    behind = shell(highwater=7, position=5, fetched=60_000, looked=60_000)
    assert not behind.is_caught_up("impressions", 0, 60_010)


def test_offsets_without_a_message_at_the_end_do_not_hold_a_partition_back_for_ever() -> None:
    end = 1_000 + faust_stage.GAP_MS
    ended = shell(highwater=7, position=7, committed=6, fetched=end, looked=end - 11)
    assert not ended.is_caught_up("impressions", 0, end - 1)
    assert ended.is_caught_up("impressions", 0, end)


def test_an_unknown_partition_is_not_caught_up() -> None:
    assert not shell(highwater=0).is_caught_up("clicks", 0, 1_010)


def test_a_key_is_the_user_of_a_raw_message_in_either_format() -> None:
    assert faust_stage.user_key(b'{"user_id":"ann"}') == b"ann"
    assert faust_stage.user_key(b"\x81\xa7user_id\x07") == b"7"
    assert faust_stage.user_key(b"neither") is None


def test_every_agent_has_a_concurrency_of_one_and_the_app_waits_for_nothing_held_open(tmp_path: Any) -> None:
    async def build() -> tuple[list[int], Any]:
        made = app.build(CONFIG, agents.NAMES, "w0", str(tmp_path))
        agents.connect(made, faust_stage.Shell(CONFIG, made, None, None, prometheus_metrics.Metrics()), agents.NAMES)  # type: ignore[arg-type]
        return [agent.concurrency for agent in made.agents.values()], made.conf

    concurrency, conf = asyncio.run(build())
    assert concurrency == [1, 1, 1, 1]
    assert (conf.stream_wait_empty, conf.web_enabled, conf.topic_disable_leader) == (False, False, True)
    assert conf.consumer_group_instance_id == "w0"


def test_another_faust_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("faust.__version__", "0.16.0")
    with pytest.raises(faust_fetch.WrongFaust, match=r"0\.16\.0"):
        faust_fetch.install(20)


def test_what_was_fetched_before_a_rebalance_is_stale_though_the_broker_kept_the_generation() -> None:
    seen: list[int] = []

    async def told(_: Any, number: int = 0) -> None:
        seen.append(number)

    faust_app = SimpleNamespace(consumer_generation_id=0, on_rebalance_start=lambda: None)
    thread: Any = SimpleNamespace(app=faust_app, on_partitions_assigned=told, on_partitions_revoked=told)
    listener = faust_fetch.NumberedAssignments(thread)
    stage = faust_stage.Stage(SimpleNamespace(config=CONFIG, app=faust_app), 1)  # type: ignore[arg-type]

    async def rebalances() -> None:
        await listener.on_partitions_assigned([AT])
        event = SimpleNamespace(message=SimpleNamespace(generation_id=faust_app.consumer_generation_id))
        assert not stage.is_stale(event)
        await listener.on_partitions_revoked([AT])
        assert stage.is_stale(event), "its partition may be another's by now"
        await listener.on_partitions_assigned([AT])
        assert stage.is_stale(event), "it will be read again"

    asyncio.run(rebalances())
    assert seen[0] < seen[2], "Faust is told the number that its messages bear"
