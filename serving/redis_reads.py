"""The one read from the store that a request makes: with a deadline, behind a circuit breaker, and never fatal."""

import asyncio
import time
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeVar

from serving.breaker import Breaker
from serving.metrics import Metrics
from state import config as configuration
from state import stores

Trouble = Literal["store_unavailable", "store_slow", "breaker_open"]
GRACE_TURNS = 4
FAILURES = (OSError, stores.StoreRefused)
Result = TypeVar("Result")


class Answer(NamedTuple):
    """What the store said; with `trouble`, nothing was found and the reply is degraded."""

    found: stores.Found | None
    supports: list[bytes | None]
    trouble: Trouble | None


class Reads:
    """Reads for requests. `failures` are the exceptions by which the store says that it cannot answer."""

    def __init__(
        self,
        store: stores.Store,
        settings: configuration.Serving,
        metrics: Metrics,
        failures: tuple[type[Exception], ...] = FAILURES,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._timeout_s = settings.store_timeout_ms / 1000
        self._breaker = Breaker(settings.breaker_failures, settings.breaker_open_s)
        self._failures = failures
        self._metrics = metrics
        self._clock_s = clock_s

    async def read(self, wanted: stores.Wanted, tasks: stores.U64) -> Answer:
        """Counters, user rows and support sets, sent together and awaited until the deadline."""
        nothing: list[bytes | None] = [None] * len(tasks)
        if not self._breaker.admits(self._clock_s()):
            return Answer(None, nothing, "breaker_open")
        began = self._clock_s()
        both = asyncio.gather(self._store.read(wanted), self._store.supports(tasks))
        try:
            found, supports = await _within(both, self._timeout_s)
        except TimeoutError:
            self._breaker.failed(self._clock_s())
            return Answer(None, nothing, "store_slow")
        except self._failures:
            self._breaker.failed(self._clock_s())
            return Answer(None, nothing, "store_unavailable")
        except BaseException:
            self._breaker.abandoned()
            raise
        finally:
            self._metrics.store.observe(self._clock_s() - began)
        self._breaker.succeeded()
        return Answer(found, supports, None)

    async def state(self) -> str:
        """What a read meets now: `up`, `slow` or `unavailable`. The breaker neither hinders nor learns from this look."""
        try:
            await _within(asyncio.ensure_future(self._store.fences([("readyz", 0)])), self._timeout_s)
        except TimeoutError:
            return "slow"
        except self._failures:
            return "unavailable"
        return "up"

    def breaker_state(self) -> str:
        """Closed, open or half_open."""
        return self._breaker.state(self._clock_s())


async def _within(future: "asyncio.Future[Result]", timeout_s: float) -> Result:
    """Like `asyncio.wait_for`, but a reply that arrived while the loop was busy past the deadline is still taken.

    Raises:
        TimeoutError: nothing arrived in time. The call goes on to the store's own, longer limit, at which a dead
            connection is closed and opened again; were it cancelled here, nobody would ever notice.
    """
    try:
        await asyncio.wait((future,), timeout=timeout_s)
        for _ in range(GRACE_TURNS):
            if future.done():
                break
            await asyncio.sleep(0)
        if future.done():
            return future.result()
        raise TimeoutError
    finally:
        future.add_done_callback(_retrieve)


def _retrieve(future: "asyncio.Future[Result]") -> None:
    if not future.cancelled():
        future.exception()
