"""The clock of one input partition: how far its impressions and its clicks are known, in event time.

Wall time and whether an input is caught up come in as arguments. A topic is caught up when all that its partition held at a
recent fetch has been taken: an input that is behind holds the watermark back, one that is merely quiet does not.
"""

NEVER = -(2**62)


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
