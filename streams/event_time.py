"""The clock of one input partition: how far its impressions and its clicks are known, in event time.

Wall time and whether an input is caught up come in as arguments. A topic is caught up when all that its partition held at a
recent fetch has been taken: an input that is behind holds the watermark back, one that is merely quiet does not.
"""

from collections.abc import Hashable

NEVER = -(2**62)
BREAK_MS = 1000
"""A partition that was not fetched, or not looked at, for longer was out of sight."""


class Sight:
    """Since when each input partition has been fetched without a break. All times in ms, of the wall.

    While brokers are away nobody is quiet: what producers hold back arrives when they are back, each topic at its own time. So a
    partition counts as caught up only after it was in sight for the idle timeout.
    """

    def __init__(self, idle_ms: int) -> None:
        self._idle_ms = idle_ms
        self._seen: dict[Hashable, tuple[int, int]] = {}

    def holds(self, at: Hashable, fetched: int, now: int) -> bool:
        """Look at a partition whose last fetch was answered at `fetched`; whether it has been in sight for long enough."""
        since, looked = self._seen.get(at, (now, now))
        if now - min(fetched, looked) > BREAK_MS:
            since = now
        self._seen[at] = (since, now)
        return now - since >= self._idle_ms

    def forget(self) -> None:
        """Partitions are assigned anew."""
        self._seen.clear()


class Clock:
    """Event time of one partition. All times in ms; `now` is wall time since the epoch.

    An event never counts as later than `now`: one clock that runs ahead must not close the windows of all others.
    """

    __slots__ = ("_last", "acted", "before", "idle_ms", "mark", "shown")

    def __init__(self, idle_ms: int, now: int) -> None:
        self.idle_ms, self._last = idle_ms, now
        self.shown = self.acted = self.mark = self.before = NEVER

    def show(self, newest: int, now: int) -> None:
        """Lists up to `newest` have been taken from `impressions`."""
        self.shown, self._last = max(self.shown, min(newest, now)), now

    def act(self, newest: int, now: int) -> None:
        """Actions up to `newest` have been taken from `clicks`."""
        self.acted, self._last = max(self.acted, min(newest, now)), now

    def is_due(self, ts: int, since: int, now: int, *, caught_up: bool) -> bool:
        """Whether an action may be counted: the lists up to its time are stamped, or none is to be expected any more.

        `since` is when the action was taken, `caught_up` is about `impressions`.
        """
        return ts <= self.shown or (caught_up and now - since >= self.idle_ms)

    def watermark(self, now: int, *, impressions_caught_up: bool, clicks_caught_up: bool) -> int:
        """All input up to this event time has been taken, disorder aside; never moves back.

        A partition silent for longer than the idle timeout moves on with wall time.
        """
        at = self.shown if clicks_caught_up else min(self.shown, self.acted)
        newest, silence = max(self.shown, self.acted), now - self._last
        if newest > NEVER and silence >= self.idle_ms and impressions_caught_up and clicks_caught_up:
            at = newest + silence
        self.mark = max(self.mark, at)
        return self.mark
