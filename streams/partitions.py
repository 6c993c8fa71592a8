"""What enrich keeps of one input partition: how far it was taken, its clock, and the actions that wait."""

from collections import deque
from typing import Any, NamedTuple

from streams import event_time

KNOWN_REQUESTS = 50_000
"""Requests of a partition that are remembered to tell an early action from one whose list was stamped."""


class Taken(NamedTuple):
    """An input message. `event` is None where it only has to be acknowledged (rejected, or at or under the fence)."""

    partition: int
    offset: int
    token: Any
    ts: int
    event: Any
    raw: bytes
    request: int
    since_ms: int


class Partition:
    """What is kept of one input partition: the offsets taken (of impressions, of clicks), its clock, actions that wait."""

    __slots__ = ("acted_ms", "clock", "held", "known", "low", "quiet_ms", "sent", "sent_ms", "taken")

    def __init__(self, fences: tuple[int, int], idle_ms: int, now_ms: int) -> None:
        self.taken = list(fences)
        self.sent = list(fences)
        self.clock = event_time.Clock(idle_ms, now_ms)
        self.held: deque[Taken] = deque()
        self.low: deque[int] = deque()
        self.known: dict[int, None] = {}
        self.acted_ms = self.sent_ms = event_time.NEVER
        self.quiet_ms = now_ms

    def is_fresh(self, which: int, offset: int) -> bool:
        """Whether a message of input `which` (0 impressions, 1 clicks) was neither counted nor taken: a client may step back."""
        fresh = offset > self.taken[which]
        self.taken[which] = max(self.taken[which], offset)
        return fresh

    def hold(self, taken: Taken) -> None:
        """Let an action wait. `low` keeps the least times of the queue in ascending order: the watermark asks for the first."""
        self.held.append(taken)
        if taken.event is not None:
            while self.low and self.low[-1] > taken.ts:
                self.low.pop()
            self.low.append(taken.ts)

    def release(self) -> Taken:
        """The first action that waits."""
        taken = self.held.popleft()
        if taken.event is not None and self.low[0] == taken.ts:
            self.low.popleft()
        return taken

    def know(self, request: int) -> bool:
        """Remember that the list of a request was taken; whether that is news."""
        if request in self.known:
            return False
        self.known[request] = None
        if len(self.known) > KNOWN_REQUESTS:
            del self.known[next(iter(self.known))]
        return True
