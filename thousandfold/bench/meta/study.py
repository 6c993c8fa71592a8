"""What the runs say: figures by part of the log, paired differences with errors, rows of the report and bars."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from thousandfold.bench import areas, protocol, report
from thousandfold.bench.meta import gains
from thousandfold.bench.meta.parts import Bools, Parts

FIGURES = {"auc": "AUC", "gauc": "AUC in a group"}
Areas = dict[str, list[areas.Area]]
"""By figure, one a seed."""


class Told(NamedTuple):
    """One variant on one part: as adapted, by its own plain tower, and the model that never adapts."""

    adapted: Areas
    unadapted: Areas
    none: Areas

    def value(self, figure: str) -> areas.Difference:
        """The figure itself."""
        return areas.mean(self.adapted[figure])

    def gain(self, figure: str) -> areas.Difference:
        """Adapted minus unadapted, of the same model."""
        return areas.difference(self.adapted[figure], self.unadapted[figure])

    def over_none(self, figure: str) -> areas.Difference:
        """Over the model that was trained without meta-learning and does not adapt."""
        return areas.difference(self.adapted[figure], self.none[figure])

    def over(self, other: "Told", figure: str) -> areas.Difference:
        """Over another variant."""
        return areas.difference(self.adapted[figure], other.adapted[figure])


Table = dict[tuple[str, str], Told]
"""By variant and part."""


class Study(NamedTuple):
    """Everything that was measured with one set of features; `judged` is the algorithm that the bars are about."""

    features: str
    runs: Mapping[str, gains.Run]
    where: Parts
    table: Table
    judged: str


def tell(inputs: protocol.Inputs, runs: Mapping[str, gains.Run], where: Parts) -> Table:
    """Figures of every variant on every part."""
    user = np.repeat(np.unique(inputs.user, return_inverse=True)[1], np.diff(inputs.start))
    rows, every = areas.Rows(inputs.label[:, 0], inputs.group, user, int(user.max(initial=-1)) + 1), where.every()
    none = _areas(rows, runs[gains.OFF].adapted, every)
    out = Table()
    for variant, run in runs.items():
        same = variant in {gains.OFF, gains.REAL_TIME}
        adapted = none if variant == gains.OFF else _areas(rows, run.adapted, every)
        unadapted = adapted if same else none if variant == gains.BIAS_TUNING else _areas(rows, run.unadapted, every)
        out |= {(variant, part): Told(adapted[part], unadapted[part], none[part]) for part in every}
    return out


def _areas(rows: areas.Rows, scores: Sequence[gains.F32], every: Mapping[str, Bools]) -> dict[str, Areas]:
    out: dict[str, Areas] = {part: {figure: [] for figure in FIGURES} for part in every}
    for score in scores:
        by_score, by_group = areas.ascending(score), areas.grouped(rows.group, score)
        for part, counted in every.items():
            out[part]["auc"].append(areas.auc(rows, score, by_score[counted[by_score]]))
            out[part]["gauc"].append(areas.gauc(rows, score, by_group[counted[by_group]]))
    return out


def line(name: str, figure: str, found: areas.Difference, command: str, target: float | None = None) -> report.Row:
    """A row of the report with the error of users and seeds."""
    made = report.row(name, found.value, FIGURES[figure], target=target, command=command)
    return msgspec.structs.replace(made, stderr=found.stderr if np.isfinite(found.stderr) else None)


def rows_of(study: Study, command: str) -> Iterator[report.Row]:
    """The report: on the whole every figure, on parts the differences."""
    every = study.where.every()
    for (variant, part), told in study.table.items():
        if not every[part].any():
            continue
        name = f"{study.features}/{variant}{part}"
        tuned = study.table[gains.BIAS_TUNING, part]
        for figure in FIGURES:
            if not part or variant == gains.OFF:
                yield line(f"{figure}/{name}", figure, told.value(figure), command)
            if variant != gains.OFF:
                yield line(f"over_none_{figure}/{name}", figure, told.over_none(figure), command)
            if variant not in {gains.OFF, gains.REAL_TIME, gains.BIAS_TUNING}:
                yield line(f"gain_{figure}/{name}", figure, told.gain(figure), command)
                yield line(f"over_bias_tuning_{figure}/{name}", figure, told.over(tuned, figure), command)
    for variant, run in study.runs.items():
        if run.seconds:
            rate = len(run.adapted[0]) / run.seconds
            yield report.row(f"rows_per_cpu_s/{study.features}/{variant}", rate, "rows of the log/s of CPU", command=command)


class Bar(NamedTuple):
    """What the judged algorithm must reach with some features: a figure over `over`, on a part."""

    kind: str
    features: str
    figure: str
    over: str
    part: str
    target: float


BARS = (
    Bar("bar", "ids", "auc", gains.OFF, "", 0.030),
    Bar("bar", "ids", "auc", gains.BIAS_TUNING, "", 0.0),
    Bar("bar", "ids", "auc", gains.OFF, "/support/0", -0.001),
    Bar("aim", "ids", "auc", gains.BIAS_TUNING, "", 0.003),
    Bar("aim", "ids", "gauc", gains.BIAS_TUNING, "", 0.003),
    Bar("aim", "rich", "gauc", gains.OFF, "", 0.002),
)
"""On the whole of MovieLens-1M."""


def judge(study: Study, command: str) -> Iterator[report.Row]:
    """Rows that pass or miss, of the bars on these features; on other data the same without targets is in `rows_of`."""
    for bar in BARS:
        told = study.table.get((study.judged, bar.part))
        if bar.features == study.features and told is not None:
            found = told.over(study.table[bar.over, bar.part], bar.figure)
            name = f"{bar.kind}/{bar.features}/{study.judged}/{bar.figure}_over_{bar.over}{bar.part}"
            yield line(name, bar.figure, found, command, bar.target)
