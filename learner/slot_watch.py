"""A word in the log for every scenario that has no parameters of its own because all slots are taken."""

import logging
from collections.abc import Mapping

import numpy as np

from models.scenario_slots import U64, Room

log = logging.getLogger(__name__)


class SlotWatch:
    """Names each such scenario once, the first `most` of them: a producer may send any number."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._named: set[int] = set()

    def see(self, without: U64, room: Room, names: Mapping[int, str]) -> None:
        """Hashes of scenarios that were trained on without a slot, and the names that are known of them."""
        for key in np.unique(without).tolist():
            if key in self._named or len(self._named) == self._most:
                continue
            self._named.add(key)
            log.warning(
                "scenario %s gets no parameters of its own: all %d slots are taken; raise scenarios.slots and start again",
                names.get(key, f"{key:016x}"),
                room.slots,
            )
            if len(self._named) == self._most:
                log.warning("%d scenarios without a slot were named, more will not be (scenarios.max_shown)", self._most)
