"""What a model's gates say in each scenario: how much is let through from what is shared, and what is scenario's own."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from learner import step
from models import base
from thousandfold.bench import pages, protocol

F32 = npt.NDArray[np.float32]
U64 = npt.NDArray[np.uint64]
ROWS = 2_000
"""Newest rows of each scenario that are looked at."""
FEW = 6
"""Values of a gate that are shown one by one."""
Inspect = Callable[[U64, F32], Mapping[str, F32]]
"""What a model says of its gates for rows of ids (n, F) and raw numbers (n, D): by gate (n, ...)."""


def values(inspect: Inspect, inputs: protocol.Inputs) -> dict[str, F32]:
    """By gate (S, k): its k values, averaged over the newest rows of each scenario, in ascending order of the scenarios' hashes.

    Empty for a model without gates.
    """
    of_row = np.repeat(inputs.scenario, np.diff(inputs.start))
    found: dict[str, list[F32]] = {}
    for scenario in np.unique(inputs.scenario).tolist():
        rows = np.flatnonzero(of_row == scenario)[-ROWS:]
        for name, gate in inspect(inputs.ids[rows], inputs.x[rows]).items():
            found.setdefault(name, []).append(gate.mean(0, dtype=np.float64).ravel().astype(np.float32))
    return {name: np.stack(means) for name, means in found.items()}


def shown(found: F32) -> str:
    """The values (k,) of a gate in a cell of a table: few one by one, more as mean and standard deviation."""
    return " ".join(f"{v:.2f}" for v in found) if len(found) <= FEW else f"{found.mean():.3f} ± {found.std():.3f}"


def picture(model: str, found: Mapping[str, F32], scenarios: Sequence[str]) -> bytes:
    """A PNG of every gate's values (S, k), scenarios by units."""
    plt = pages.pyplot()
    figure, axes = plt.subplots(len(found), 1, figsize=(10, 0.7 + len(found) * (0.8 + 0.25 * len(scenarios))), squeeze=False)
    for axis, (gate, values) in zip(axes[:, 0], found.items(), strict=True):
        drawn = axis.imshow(values, cmap="viridis", aspect="auto")
        axis.set_yticks(range(len(scenarios)), scenarios)
        axis.set_title(f"{model}: {gate}", fontsize=9)
        figure.colorbar(drawn, ax=axis)
    figure.tight_layout()
    return pages.png(figure)


def of_trainer(trainer: step.Trainer) -> Inspect:
    """The gates of the parameters that are being trained."""
    parameters = base.views(torch.from_numpy(trainer.dense), trainer.model.shapes)

    def inspect(hashes: U64, numbers: F32) -> dict[str, F32]:
        scenario = trainer.table.columns.of(base.geometry(trainer.settings).scenario)
        slot = trainer.slots.find(hashes[:, scenario]) if scenario >= 0 else np.zeros(len(hashes), np.int64)
        x = np.empty((len(hashes), trainer.table.row), np.float32)
        trainer.table.gather(trainer.find(hashes), numbers, slot, x)
        seen = (trainer.gains.apply(x, slot), slot, trainer.slots.earned(slot))
        with torch.no_grad():
            said = trainer.model.inspect(parameters, base.Inputs(*(torch.from_numpy(part) for part in seen)))
        return {name: gate.numpy() for name, gate in said.items()}

    return inspect
