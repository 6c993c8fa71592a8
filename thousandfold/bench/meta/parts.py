"""The parts of a log in which gains are told: by support, by size of the task, by scenario."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from learner import episodes
from state import config as configuration
from thousandfold.bench import protocol, quality

I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
SUPPORT = ((0, 0), (1, 1), (2, 4), (5, 8), (9, 16), (17, 32))
"""Classes of support rows, from and to; a support set holds `support.size` at most."""
DECILES = 10


class Parts(NamedTuple):
    """Which rows (R,) count, by name: "" is all after the burn-in; classes of support, and tenths of the tasks by size."""

    support: dict[str, Bools]
    decile: dict[str, Bools]
    scenario: dict[str, Bools]
    whole: Bools

    def every(self) -> dict[str, Bools]:
        """All of them, by their part of a row's id."""
        return {"": self.whole, **self.support, **self.decile, **self.scenario}


def support_rows(config: configuration.Config, inputs: protocol.Inputs) -> I64:
    """(R,) rows in the support set of each row's list when it was scored."""
    known, counts = protocol.Supports(config, inputs), []
    for first, last in episodes.cut(np.diff(inputs.start), config.quality.block_rows):
        counts.append(known.of(first, last)[0])
    return np.repeat(np.concatenate(counts), np.diff(inputs.start))


def parts(config: configuration.Config, inputs: protocol.Inputs) -> Parts:
    """Of the rows after the burn-in that have a label. A task's size is the rows that it has in the whole log."""
    counted = np.arange(inputs.rows) >= round(config.quality.burn_in * inputs.rows)
    counted &= np.isfinite(inputs.label[:, 0])
    n, items = support_rows(config, inputs), np.diff(inputs.start)
    support = {f"/support/{a}" if a == z else f"/support/{a}-{z}": counted & (a <= n) & (n <= z) for a, z in SUPPORT}
    _, task = np.unique(inputs.task, return_inverse=True)
    size = np.bincount(task, weights=items)
    tenth = np.empty(len(size), np.int64)
    tenth[np.argsort(size, kind="stable")] = np.arange(len(size)) * DECILES // max(len(size), 1)
    of_row = np.repeat(tenth[task], items)
    decile = {f"/size/{d + 1}": counted & (of_row == d) for d in range(DECILES)}
    shown = np.repeat(inputs.scenario, items)
    scenario = {f"/scenario/{name}": counted & (shown == code) for name, code in quality.scenarios_of(config, inputs)}
    return Parts(support, decile, scenario, counted)
