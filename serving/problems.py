"""Everything that can be wrong with a request, in the one shape that every failure of the service has.

`{"error": {"code": "too_many_candidates", "message": "1,001 candidates, at most 1,000", "hint": "split the request"}}`
"""

import msgspec


class Problem(Exception):
    """A request cannot be answered; `code` is stable and meant for programs, `message` and `hint` for people."""

    def __init__(self, status: int, code: str, message: str, hint: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.hint = hint
        self.headers = headers or {}


class Explained(msgspec.Struct, frozen=True):
    """The inside of an error reply."""

    code: str
    message: str
    hint: str


class ErrorReply(msgspec.Struct, frozen=True):
    """The body of every reply whose status is 400 or above."""

    error: Explained


def reply(problem: Problem) -> ErrorReply:
    """The body that tells a client of `problem`."""
    return ErrorReply(Explained(problem.code, str(problem), problem.hint))


def of_status(status: int) -> Problem:
    """The problem of a failure that only a status describes: no such path, a wrong method, a defect."""
    known = {
        404: ("not_found", "there is nothing at this path", "POST /v1/score or /v1/retrieve, GET /healthz, /readyz or /metrics"),
        405: ("method_not_allowed", "this path takes another method", "see the Allow header"),
        500: ("internal", "a defect of the service; it has been logged", "repeat the request; report it if it stays"),
    }
    code, message, hint = known.get(status, ("failed", f"the request failed with status {status}", "see docs/serving.md"))
    return Problem(status, code, message, hint)
