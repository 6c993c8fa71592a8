"""Dead letters: an input that cannot be used, with its original bytes, why, and where it stood."""

import typing
from collections.abc import Iterable
from typing import NamedTuple

from state import records

LATE, ORPHAN = "late", "orphan"
SCHEMA, TOO_LARGE = "schema", "too_large"
REASONS: tuple[str, ...] = (*typing.get_args(records.Reason), LATE, ORPHAN, SCHEMA)
"""All reasons: those of `records.Rejected`; `late` (the list of an action was closed, or it is outside the list's window);
`orphan` (an action whose impression did not come); `schema` (a derived message of another spec or version)."""

Headers = list[tuple[str, bytes]]


class Letter(NamedTuple):
    """Why and where from: `stage` is the agent that gave up, `origin_*` say where the message stood, `at_ms` when."""

    reason: str
    detail: str
    stage: str
    origin_topic: str
    origin_partition: int
    origin_offset: int
    at_ms: int


def headers(letter: Letter) -> Headers:
    """Kafka headers of a letter: every field as text."""
    return [(name, str(value).encode()) for name, value in letter._asdict().items()]


def read_headers(found: Iterable[tuple[str, bytes | None]] | None) -> Letter:
    """The letter that `headers` describes; foreign or missing headers read as empty text and -1."""
    text = {name: (value or b"").decode("utf-8", "replace") for name, value in found or ()}

    def number(name: str) -> int:
        try:
            return int(text.get(name, ""))
        except ValueError:
            return -1

    return Letter(
        text.get("reason", ""),
        text.get("detail", ""),
        text.get("stage", ""),
        text.get("origin_topic", ""),
        number("origin_partition"),
        number("origin_offset"),
        number("at_ms"),
    )
