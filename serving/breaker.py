"""A circuit breaker (Nygard, Release It!): after failures in a row stop asking for a while, then let one probe decide.

Time comes in as an argument (seconds of any monotonic clock).
"""

from typing import Literal


class Breaker:
    """Closed lets every call through; open none; half-open one probe at a time."""

    def __init__(self, failures: int, open_s: float) -> None:
        self._allowed_failures = failures
        self._open_s = open_s
        self._failures = 0
        self._opened_at: float | None = None
        self._probing = False

    def state(self, now: float) -> Literal["closed", "open", "half_open"]:
        """What a call at `now` meets."""
        if self._opened_at is None:
            return "closed"
        return "open" if now < self._opened_at + self._open_s else "half_open"

    def admits(self, now: float) -> bool:
        """Whether a call may be made; whoever is admitted must report `succeeded`, `failed` or `abandoned`."""
        state = self.state(now)
        if state == "half_open":
            if self._probing:
                return False
            self._probing = True
        return state != "open"

    def succeeded(self) -> None:
        """The call was answered: closed again."""
        self._failures, self._opened_at, self._probing = 0, None, False

    def failed(self, now: float) -> None:
        """The call failed; the last allowed failure, or a failed probe, opens the breaker from `now`."""
        self._failures += 1
        self._probing = False
        if self._opened_at is not None or self._failures >= self._allowed_failures:
            self._opened_at = now

    def abandoned(self) -> None:
        """The caller gave up before an outcome: neither a success nor a failure."""
        self._probing = False
