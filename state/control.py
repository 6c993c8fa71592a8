"""The `control` topic: switches of meta-learning that a running learner obeys.

One record per switch: the key is the scenario, or `*` for all that have no mode of their own; the value is JSON. The topic is
compacted by key, so it keeps the newest switch of every scenario for ever; what was applied, and when, is in the plan.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from state import plan

EVERY = "*"
Mode = Literal["off", "on", "fine_tune_only"]


class Switch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """From now on `scenario` (or `*`: every one without a mode of its own) has `mode`; asked for at `wall_ms`."""

    scenario: Annotated[str, Meta(min_length=1)]
    mode: Mode
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


def decode(value: bytes) -> Switch:
    """A switch from the value of its record.

    Raises:
        Malformed: it is none.
    """
    try:
        return msgspec.json.decode(value, type=Switch)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Malformed(f"not a switch of meta-learning: {error}") from error
