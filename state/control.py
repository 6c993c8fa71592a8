"""The `control` topic: switches of meta-learning that a running learner obeys, and what it decided itself where it may.

One record per switch: the key is the scenario, or `*` for all that have no mode of their own; the value is JSON. The topic is
compacted by key, so it keeps the newest switch of every scenario for ever; what was applied, and when, is in the plan.

A decision of a learner about a scenario that is `auto` is written in one transaction with the plan record that names it, under
the scenario's name behind a byte that no name begins with, so that compaction keeps it beside the switch. It is for people to
read: the learner takes its decisions from its own state, and passes these records over.
"""

from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta

from state import plan

EVERY = "*"
Mode = Literal["off", "on", "fine_tune_only", "auto"]
DECIDED = b"\xff"
T = TypeVar("T")


class Switch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """From now on `scenario` (or `*`: every one without a mode of its own) has `mode`; asked for at `wall_ms`."""

    scenario: Annotated[str, Meta(min_length=1)]
    mode: Mode
    wall_ms: int


class Decision(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """From step `first_step` on the scenario, which is `auto`, is adapted or not; `sequence` is the plan record that says so too.

    As for plan records: a later record of the same or a smaller `sequence` says that a restart took it back.
    """

    scenario: Annotated[str, Meta(min_length=1)]
    on: bool
    first_step: int
    sequence: int
    wall_ms: int


class Malformed(ValueError):
    """The bytes are no switch; `reason` and `detail` are what a dead letter says."""

    reason = plan.MALFORMED

    def __init__(self, detail: str) -> None:
        super().__init__(f"{self.reason}: {detail}")
        self.detail = detail


def encode(switch: Switch) -> tuple[bytes, bytes]:
    """Key and value of a switch's record."""
    return switch.scenario.encode(), msgspec.json.encode(switch)


def encode_decision(decision: Decision) -> tuple[bytes, bytes]:
    """Key and value of a decision's record."""
    return DECIDED + decision.scenario.encode(), msgspec.json.encode(decision)


def is_decision(key: bytes | None) -> bool:
    """Whether the record of this key is a learner's decision and no switch."""
    return (key or b"").startswith(DECIDED)


def decode_decision(value: bytes) -> Decision:
    """A decision from the value of its record.

    Raises:
        Malformed: it is none.
    """
    return _decoded(value, Decision, "decision about")


def decode(value: bytes) -> Switch:
    """A switch from the value of its record.

    Raises:
        Malformed: it is none.
    """
    return _decoded(value, Switch, "switch of")


def _decoded(value: bytes, kind: type[T], name: str) -> T:
    try:
        return msgspec.json.decode(value, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Malformed(f"not a {name} meta-learning: {error}") from error
