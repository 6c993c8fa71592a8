import asyncio
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from serving import redis_reads
from serving.metrics import Metrics
from state import config as configuration
from state import memory_store, stores

NONE = np.zeros(0, np.uint64)
WANTED = stores.Wanted((), NONE, NONE)
TASKS = np.array([5], np.uint64)
SETTINGS = configuration.Serving(store_timeout_ms=20, breaker_failures=2, breaker_open_s=3)


class Store(memory_store.MemoryStore):
    """A store that waits, and then fails if it should."""

    def __init__(self) -> None:
        super().__init__(stores.Schema((), (), 0, 0), lambda: 0)
        self.delay_s = 0.0
        self.failure: Exception | None = None
        self.calls = 0
        self.finished = 0

    async def read(self, wanted: stores.Wanted) -> stores.Found:
        self.calls += 1
        await asyncio.sleep(self.delay_s)
        if self.failure is not None:
            raise self.failure
        self.finished += 1
        return await super().read(wanted)

    async def fences(self, partitions: Sequence[tuple[str, int]]) -> list[int]:
        await asyncio.sleep(self.delay_s)
        if self.failure is not None:
            raise self.failure
        return await super().fences(partitions)


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def reading() -> tuple[redis_reads.Reads, Store, Clock, Metrics]:
    store, clock, metrics = Store(), Clock(), Metrics()
    return redis_reads.Reads(store, SETTINGS, metrics, clock_s=clock), store, clock, metrics


async def troubles(reads: redis_reads.Reads, n: int) -> list[Any]:
    return [(await reads.read(WANTED, TASKS)).trouble for _ in range(n)]


def test_counters_and_support_sets_come_back_together() -> None:
    async def check() -> None:
        reads, store, _, metrics = reading()
        await store.put_supports(TASKS, [b"rows"], 1000)
        answer = await reads.read(WANTED, TASKS)
        assert (answer.supports, answer.trouble) == ([b"rows"], None)
        assert answer.found is not None
        assert b"thousandfold_store_seconds_count 1.0" in metrics.text()

    asyncio.run(check())


def test_a_slow_store_is_waited_for_until_the_deadline_only_and_its_late_reply_breaks_nothing() -> None:
    async def check() -> None:
        reads, store, _, _ = reading()
        store.delay_s = 0.2
        assert await troubles(reads, 1) == ["store_slow"]
        assert store.finished == 0
        await asyncio.sleep(0.3)
        assert store.finished == 1

    asyncio.run(check())


@pytest.mark.parametrize("failure", [stores.StoreUnavailable("u", "gone"), stores.StoreRefused("AUTH"), ConnectionResetError()])
def test_whatever_the_store_says_instead_of_an_answer_is_one_trouble(failure: Exception) -> None:
    async def check() -> None:
        reads, store, _, _ = reading()
        store.failure = failure
        assert await troubles(reads, 1) == ["store_unavailable"]

    asyncio.run(check())


def test_a_defect_is_not_taken_for_a_failing_store() -> None:
    async def check() -> None:
        reads, store, _, _ = reading()
        store.failure = ZeroDivisionError()
        for _ in range(5):
            with pytest.raises(ZeroDivisionError):
                await reads.read(WANTED, TASKS)
        assert reads.breaker_state() == "closed"

    asyncio.run(check())


def test_after_failures_in_a_row_the_store_is_left_alone_until_a_probe_succeeds() -> None:
    async def check() -> None:
        reads, store, clock, _ = reading()
        store.failure = ConnectionRefusedError()
        assert await troubles(reads, 5) == ["store_unavailable"] * 2 + ["breaker_open"] * 3
        assert store.calls == 2
        clock.now_s += 3
        assert await troubles(reads, 2) == ["store_unavailable", "breaker_open"]
        clock.now_s += 3
        store.failure = None
        assert await troubles(reads, 3) == [None] * 3

    asyncio.run(check())


def test_an_answer_that_arrived_while_the_loop_was_busy_past_the_deadline_is_taken() -> None:
    async def check() -> None:
        reads, store, _, _ = reading()
        store.delay_s = 0.005
        busy = asyncio.get_running_loop().call_later(0.001, time.sleep, 0.1)
        assert await troubles(reads, 1) == [None]
        busy.cancel()

    asyncio.run(check())


def test_the_state_of_the_store_is_told_without_the_breaker() -> None:
    async def check() -> None:
        reads, store, _, _ = reading()
        assert await reads.state() == "up"
        store.failure = ConnectionRefusedError()
        assert await reads.state() == "unavailable"
        store.failure, store.delay_s = None, 0.2
        assert await reads.state() == "slow"
        assert reads.breaker_state() == "closed"
        await asyncio.sleep(0.25)

    asyncio.run(check())
