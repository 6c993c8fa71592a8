"""What a model's gates say in each scenario: how much is let through from what is shared, and what is scenario's own."""

import numpy as np
import numpy.typing as npt
import torch

from learner import step
from models import base
from thousandfold.bench import protocol

F32 = npt.NDArray[np.float32]
ROWS = 2_000
"""Newest rows of each scenario that are looked at."""


def values(trainer: step.Trainer, inputs: protocol.Inputs) -> dict[str, F32]:
    """By gate (S, k): its k values, averaged over the newest rows of each scenario, in ascending order of the scenarios' hashes.

    Empty for a model without gates.
    """
    of_row = np.repeat(inputs.scenario, np.diff(inputs.start))
    found: dict[str, list[F32]] = {}
    parameters = base.views(torch.from_numpy(trainer.dense), trainer.model.shapes)
    for scenario in np.unique(inputs.scenario).tolist():
        rows = np.flatnonzero(of_row == scenario)[-ROWS:]
        x = np.empty((len(rows), trainer.table.row), np.float32)
        slot = trainer.slots.find(of_row[rows])
        trainer.table.gather(trainer.table.map.find(inputs.ids[rows]), inputs.x[rows], slot, x)
        earned = trainer.slots.earned(slot)
        with torch.no_grad():
            own = trainer.gains.apply(x, slot)
            seen = base.Inputs(torch.from_numpy(own), torch.from_numpy(slot), torch.from_numpy(earned))
            for name, gate in trainer.model.inspect(parameters, seen).items():
                found.setdefault(name, []).append(gate.double().mean(0).flatten().float().numpy())
    return {name: np.stack(means) for name, means in found.items()}
