"""The plan: what each step of the learner consumed, written durably before the step runs.

One record covers all steps cut from one fetch. Records are numbered by `sequence`, and a snapshot's manifest holds the number
that comes next. A learner that restarts goes on from its snapshot, so it numbers and plans again what it had done since:

    Rule for an auditor: read the topic with isolation read_committed, in order. A record replaces every earlier record whose
    sequence is not lower than its own. What is left is what the learner's parameters were trained on.

A minibatch that a guard refused is known only after it ran, so its lists are named in the record of the next fetch. A learner
that stops for good right after such a step leaves them unnamed: the same is true of the rows that its last fetch planned and
did not reach.
"""

from collections.abc import Iterable
from typing import NamedTuple

import msgspec

Range = tuple[str, int, int, int]
Skip = tuple[str, int, int, int, str]
Switched = tuple[str, str]
Decided = tuple[str, int, bool]
WHOLE_MESSAGE = -1
DUPLICATE, GUARD, SCHEMA, MALFORMED = "duplicate", "guard", "schema", "malformed"


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What the steps `first_step` to `last_step` consume.

    `ranges` are [topic, partition, from, to) by offset; `skipped` are [topic, partition, offset, list index, reason] within these
    or earlier ranges, with list index -1 for a whole message. `last_step` is `first_step` - 1 if nothing is left to train.
    `switches` are [scenario or `*`, mode] of meta-learning, in order, applied before `first_step`; the ranges of the topic
    `control` say where they stood. `decisions` are [scenario, its hash, adapted or not] of scenarios that are `auto`, applied
    before `switches`: what the learner made of everything before, so a repetition decides the same. `incarnation` is the wall ms
    at which the learner process started; `seed`, `threads`, `code` and `spec` are what a repetition must share.
    """

    sequence: int
    incarnation: int
    first_step: int
    last_step: int
    wall_ms: int
    ranges: tuple[Range, ...]
    skipped: tuple[Skip, ...]
    rows: int
    seed: int
    threads: int
    code: str
    spec: str
    switches: tuple[Switched, ...] = ()
    decisions: tuple[Decided, ...] = ()


encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Record).decode


class UnreadableRecord(ValueError):
    """The bytes are no plan record of this version."""


def decode(data: bytes) -> Record:
    """A record from its bytes.

    Raises:
        UnreadableRecord: they are no plan record.
    """
    try:
        return _decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UnreadableRecord(f"not a plan record: {error}") from error


class Consumed(NamedTuple):
    """What the learner's parameters were trained on.

    `ranges` maps (topic, partition) to merged, ascending [from, to); `gaps` are offsets between the first and the last that no
    range covers, `overlaps` those covered twice: both are empty in a healthy log. `skipped` maps (topic, partition, offset,
    list index) to a reason. `superseded` counts records that a restart replaced.
    """

    ranges: dict[tuple[str, int], list[tuple[int, int]]]
    skipped: dict[tuple[str, int, int, int], str]
    gaps: list[Range]
    overlaps: list[Range]
    rows: int
    steps: int
    superseded: int


def effective(records: Iterable[Record]) -> tuple[list[Record], int]:
    """The records that count, by the module's rule, and how many a restart replaced."""
    kept: list[Record] = []
    superseded = 0
    for record in records:
        while kept and kept[-1].sequence >= record.sequence:
            kept.pop()
            superseded += 1
        kept.append(record)
    return kept, superseded


def consumed(records: Iterable[Record]) -> Consumed:
    """Apply the module's rule to the records of a plan, in the order of the topic.

    >>> def record(sequence, start, end):
    ...     return Record(sequence=sequence, incarnation=0, first_step=1, last_step=1, wall_ms=0, rows=1, seed=0, threads=1,
    ...         code="", spec="", ranges=(("episodes", 0, start, end),), skipped=())
    >>> consumed([record(0, 0, 5), record(1, 5, 9), record(1, 5, 7)]).ranges
    {('episodes', 0): [(0, 7)]}
    """
    kept, superseded = effective(records)
    by_partition: dict[tuple[str, int], list[tuple[int, int]]] = {}
    skipped: dict[tuple[str, int, int, int], str] = {}
    for record in kept:
        for topic, partition, start, end in record.ranges:
            by_partition.setdefault((topic, partition), []).append((start, end))
        skipped |= {(topic, partition, offset, index): reason for topic, partition, offset, index, reason in record.skipped}
    gaps: list[Range] = []
    overlaps: list[Range] = []
    merged = {key: _merge(key, ranges, gaps, overlaps) for key, ranges in by_partition.items()}
    steps = sum(r.last_step - r.first_step + 1 for r in kept)
    return Consumed(merged, skipped, gaps, overlaps, sum(r.rows for r in kept), steps, superseded)


def _merge(
    key: tuple[str, int], ranges: list[tuple[int, int]], gaps: list[Range], overlaps: list[Range]
) -> list[tuple[int, int]]:
    out: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if not out:
            out.append((start, end))
            continue
        first, last = out[-1]
        if start > last:
            gaps.append((*key, last, start))
            out.append((start, end))
            continue
        if start < last:
            overlaps.append((*key, start, min(last, end)))
        out[-1] = (first, max(last, end))
    return out
