"""Narrow changes to Faust, in one place and pinned to the version that they were measured with (docs/decisions).

aiokafka keeps one fetch in flight per broker, and Faust lets it wait 1.5 s on idle partitions, while busy ones run dry: the
wait becomes a setting. `Consumer._drain_messages` makes four tasks per message to be interruptible while a callback waits:
the callback is stepped once first, and it nearly always ends without waiting. A static member that joins again may get the
generation that it had, and then messages fetched before the rebalance pass for new ones: every assignment gets its own number.

Two of them keep messages from being lost in a rebalance. What was fetched while it went on is dropped, as Faust then steps back
to the committed offsets; but aiokafka leaves a partition that nothing was committed of where it stands, so it is rewound here.
And where Faust runs without its compiled part, it acknowledges a message that a stream skips, as it was fetched before the
rebalance; without a committed offset to compare with, a commit would then pass over all messages before it.
"""

import itertools
import types
from collections.abc import Coroutine, Generator, Iterable
from typing import Any, cast

import aiokafka
import faust
import faust.transport.consumer
import faust.transport.drivers.aiokafka
from faust.transport.consumer import ensure_TPset
from mode.services import Service, WaitResults

FAUST_VERSION = "0.15.3"
UNASSIGNED = -1
_numbers = itertools.count(1)


class WrongFaust(RuntimeError):
    """The installed Faust is not the one that these changes were written for."""


def install(fetch_wait_ms: int) -> None:
    """Apply the changes to this process; call once, before the app is built.

    Raises:
        WrongFaust: another version of faust-streaming is installed.
    """
    if faust.__version__ != FAUST_VERSION:
        raise WrongFaust(
            f"faust-streaming {faust.__version__} is installed, streams/faust_fetch.py was written for {FAUST_VERSION}; "
            "install that version, or check the changes against the new one and raise FAUST_VERSION"
        )
    consumer: Any = faust.transport.consumer.Consumer
    consumer.wait_first = _wait_first
    consumer.ack = ack_taken
    driver: Any = faust.transport.drivers.aiokafka
    driver.Consumer.RebalanceListener = NumberedAssignments
    _own_consumer(fetch_wait_ms)


class RewindingConsumer(aiokafka.AIOKafkaConsumer):  # type: ignore[misc]  # aiokafka has no types
    """Steps back to the start of partitions without a committed offset, where aiokafka would go on at its position."""

    async def seek_to_committed(self, *partitions: Any) -> dict[Any, int | None]:
        """Seek to what is read first after a restart; return the committed offsets (None: none).

        Raises:
            IllegalStateError: a partition is not assigned.
        """
        found: dict[Any, int | None] = await super().seek_to_committed(*partitions)
        untouched = [partition for partition, offset in found.items() if not offset]
        if untouched:
            await self.seek_to_beginning(*untouched)
        return found


class NumberedAssignments(faust.transport.drivers.aiokafka.ConsumerRebalanceListener):
    """Tells Faust of rebalances. What was fetched before one ended bears a number that never comes again."""

    def on_partitions_revoked(self, revoked: Iterable[Any]) -> Any:
        """From here to the next assignment nothing that was fetched may be used."""
        self._thread.app.consumer_generation_id = UNASSIGNED
        return super().on_partitions_revoked(revoked)

    async def on_partitions_assigned(self, assigned: Iterable[Any]) -> None:
        """The number of the assignment stands where Faust keeps the broker's generation; it only ever compares it."""
        number = next(_numbers)
        self._thread.app.consumer_generation_id = number
        await self._thread.on_partitions_assigned(ensure_TPset(assigned), number)


def _own_consumer(fetch_wait_ms: int) -> None:
    driver: Any = faust.transport.drivers.aiokafka

    def make(*arguments: Any, **settings: Any) -> Any:
        if "fetch_max_wait_ms" in settings:
            settings["fetch_max_wait_ms"] = fetch_wait_ms
        return RewindingConsumer(*arguments, **settings)

    # The driver's view of aiokafka only: other users of the package keep theirs.
    driver.aiokafka = types.SimpleNamespace(**{**vars(driver.aiokafka), "AIOKafkaConsumer": make})


_ack = faust.transport.consumer.Consumer.ack


def ack_taken(self: Any, message: Any) -> bool:
    """Acknowledge a message if a stream took it."""
    return bool(message.tracked and _ack(self, message))


async def _wait_first(self: Any, *coroutines: Any, timeout: float | None = None) -> WaitResults:  # noqa: ASYNC109 -- Faust's name
    callback = coroutines[0]
    if len(coroutines) == 2 and getattr(callback, "__name__", "") == "on_message" and not self.suspend_flow.is_set():
        try:
            awaited = callback.send(None)
        except StopIteration:
            coroutines[1].close()
            return WaitResults([], [], False)
        coroutines = (_rest(callback, awaited), coroutines[1])
    result: WaitResults = await cast("Any", Service.wait_first)(self, *coroutines, timeout=timeout)
    return result


async def _rest(coroutine: Coroutine[Any, Any, Any], awaited: Any) -> Any:
    return await _resume(coroutine, awaited)


@types.coroutine
def _resume(coroutine: Coroutine[Any, Any, Any], awaited: Any) -> Generator[Any, Any, Any]:
    """Go on with a coroutine that was stepped once and waits for `awaited`."""
    while True:
        try:
            sent = yield awaited
        except BaseException as error:  # noqa: BLE001 -- handed on, cancellation included
            try:
                awaited = coroutine.throw(error)
            except StopIteration as stop:
                return stop.value
        else:
            try:
                awaited = coroutine.send(sent)
            except StopIteration as stop:
                return stop.value
