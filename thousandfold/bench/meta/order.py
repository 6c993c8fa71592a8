"""What bias tuning does to GAUC where the order of a task's rows says nothing: the same rows, in an order that was drawn.

Of a task's n rows p are positive, so each positive that was seen leaves fewer among those to come: whatever follows the mean of
what was seen ranks a task's own rows the wrong way round, the more the fewer they are. Where a task's labels change places among
its rows, together with what the plain model says of them, nobody has anything to find in the order, and this is all that is left.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from thousandfold.bench import baselines, figures, grids, protocol, report
from thousandfold.bench.meta import gains, parts

F32 = npt.NDArray[np.float32]
Losses = dict[str, tuple[float, list[float]]]
"""By part, GAUC of bias tuning over the plain model: in the order of time, and in drawn orders, one a seed."""


def drawn(inputs: protocol.Inputs, plain: F32, seed: int) -> tuple[protocol.Inputs, F32]:
    """Labels (R, O) and predictions (R,), each task's in another order; rows keep their places, ids and times."""
    task = np.repeat(inputs.task, np.diff(inputs.start))
    order = np.argsort(task, kind="stable")
    other = np.lexsort((np.random.default_rng(seed).random(inputs.rows), task))
    label, said = inputs.label.copy(), plain.copy()
    label[order], said[order] = inputs.label[other], plain[other]
    return inputs._replace(label=label), said


def moved(inputs: protocol.Inputs, seed: int) -> protocol.Inputs:
    """Each task's rows in another order, with items, ids, numbers and labels, for models that learn anew; places keep their time.

    Numbers of counters stay what they were when the row was shown, so only inputs without them are free of the order.
    """
    task = np.repeat(inputs.task, np.diff(inputs.start))
    to = np.argsort(task, kind="stable")
    of = np.empty_like(to)
    of[to] = np.lexsort((np.random.default_rng(seed).random(inputs.rows), task))
    return inputs._replace(item=inputs.item[of], ids=inputs.ids[of], x=inputs.x[of], label=inputs.label[of])


def measure(inputs: protocol.Inputs, plain: Sequence[F32], rate: float, where: parts.Parts) -> Losses:
    """On all rows that count, and by size of the task; `plain` are predictions (R,) without adaptation, one a seed."""
    every = {"": where.whole, **where.decile}
    as_it_was = _losses(inputs, plain[0], rate, every)
    others = [_losses(*drawn(inputs, said, seed), rate, every) for seed, said in enumerate(plain)]
    return {part: (as_it_was[part], [other[part] for other in others]) for part in every}


def _losses(
    inputs: protocol.Inputs, plain: F32, rate: float, every: Mapping[str, npt.NDArray[np.bool_]]
) -> dict[str, float]:  # fmt: skip
    tuned, label = baselines.bias_tuning(inputs, 0, plain, rate), inputs.label[:, 0]

    def gauc(score: F32, rows: npt.NDArray[np.bool_]) -> float:
        return figures.figures(inputs.group[rows], label[rows], score[rows]).gauc

    # A label that is missing may have taken the place of one that is there.
    counted = {part: rows & np.isfinite(label) for part, rows in every.items()}
    return {part: gauc(tuned, rows) - gauc(plain, rows) for part, rows in counted.items()}


def rows_of(features: str, found: Losses, command: str) -> list[report.Row]:
    """Rows of the report."""
    unit = "AUC in a group, over none, of rows in a drawn order"
    return [
        report.row(f"drawn_order_gauc/{features}/{gains.BIAS_TUNING}{part}", losses, unit, command=command)
        for part, (_, losses) in found.items()
    ]


def table(features: str, found: Losses) -> grids.Grid:
    """Both, and what is left when the arithmetic is taken away."""
    heads = ["order of a task's rows", *("all" if not part else part.rpartition("/")[2] for part in found)]
    lines = {
        "of time": [was for was, _ in found.values()],
        "drawn": [float(np.mean(losses)) for _, losses in found.values()],
        "difference": [was - float(np.mean(losses)) for was, losses in found.values()],
    }
    rows = [[name, *(f"{value:+.4f}" for value in values)] for name, values in lines.items()]
    return grids.Grid(f"{features}: GAUC of bias tuning over none, by tenth of the tasks by size", heads, rows)
