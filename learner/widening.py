"""A snapshot for a learner that has more scenario slots than its maker had: what is new begins as it does in a fresh learner.

Everything that is kept by slot begins with slot 0 and grows at its end, and so do, within the flat vectors, the numbers of each
parameter that scenarios own. So old slots go on exactly as they would have, their optimiser's state included.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from models import base, scenario_slots

Arrays = Mapping[str, npt.NDArray[Any]]
FLAT = ("dense", "dense.trained", "adam.mean", "adam.square")
"""Arrays laid out as the dense parameters are."""


def widened(arrays: Arrays, fresh: Arrays, shapes: base.Shapes, slots: int) -> Arrays:
    """The arrays of a snapshot with room for as many scenarios as `slots` says; as they are, if they have it already.

    `fresh` are arrays by slot and `FLAT` ones as a learner with `slots` slots begins, `shapes` those of its dense parameters.
    Arrays that do not have the shapes of fewer slots are left as they are, for `Trainer.load` to refuse.

    Raises:
        ValueError: the snapshot has more slots.
    """
    had = len(arrays["slots.keys"]) if "slots.keys" in arrays else slots
    if had > slots:
        raise ValueError(
            f"the snapshot has room for {had} scenarios with parameters of their own, scenarios.slots is {slots}; "
            f"set it to {had} or more: a slot once given cannot be taken back"
        )
    if had == slots:
        return arrays
    found = dict(arrays)
    for name, start in fresh.items():
        if name not in arrays:
            continue
        if name in FLAT:
            found[name] = _flat(arrays[name], start, shapes, had, slots)
        elif arrays[name].shape == (len(start) - slots + had, *start.shape[1:]):
            found[name] = np.concatenate([arrays[name], start[len(arrays[name]) :]])
    return found


def _flat(old: npt.NDArray[Any], fresh: npt.NDArray[Any], shapes: base.Shapes, had: int, slots: int) -> npt.NDArray[Any]:
    """A flat vector of fewer slots spread over one of more."""
    spans = scenario_slots.owned(shapes, slots)
    if old.shape != (len(fresh) - sum(span.each for span in spans) * (slots - had),):
        return old
    out, at, to = fresh.copy(), 0, 0
    for span in spans:
        shared, own = span.start - to, span.each * (had + 1)
        out[to : span.start] = old[at : at + shared]
        out[span.start : span.start + own] = old[at + shared : at + shared + own]
        at, to = at + shared + own, span.start + span.each * (slots + 1)
    out[to:] = old[at:]
    return out
