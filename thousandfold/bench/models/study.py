"""What the results of one protocol say: figures per scenario and objective, differences to a reference, rows of the report."""

import itertools
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from models import losses
from state import config as configuration
from thousandfold.bench import quality, report
from thousandfold.bench.models import kinds, protocols, seesaw, zoo

ML1M_TARGETS: dict[str, dict[str, float]] = {
    "P": {"auc": 0.795, "gauc": 0.738, "logloss": 0.537},
    "P-ids": {"auc": 0.757, "gauc": 0.719},
    "C": {"auc": 0.763, "logloss": 0.580},
    "R": {"auc": 0.813, "logloss": 0.518},
}
"""What the best model must reach on the whole of MovieLens-1M; P-ids with labels at least a block (1,000 rows) late."""
SIMULATED = ("simulate", "simulate7")
SIMULATED_SMALL = ("middle", "small")
"""Scenarios of the simulated seesaws that must gain from the others."""
SHARED_P = 0.01
UPPER_END = "AUC, upper end of 95 %"
"""Unit of a bar on a difference of binary objectives."""
PLAIN = ("pepnet", "shared_bottom")
"""The first may be below the second in no scenario by more than noise."""
CAPTIONS = {
    "P": "one pass in order of time, predicted before trained on",
    "P-ids": "ids and raw attributes only; one pass in order of time, predicted before trained on",
    "C": "ids and raw attributes only; one pass up to the cut in time, then as it stands",
    "R": "ids and raw attributes only; random 8:1:1, trained on the future: only to compare with figures of others",
}


class Cell(NamedTuple):
    """One objective (its index) in one scenario ("" for all), and the rows of it that count."""

    scenario: str
    objective: int
    rows: npt.NDArray[np.int64]


class Key(NamedTuple):
    """What a figure or a difference is about."""

    name: str
    scenario: str
    objective: int


class Study(NamedTuple):
    """Results by entrant in the order of the tables; `reference` is the one that `differences` are taken to, if it took part."""

    label: str
    config: configuration.Config
    plan: protocols.Plan
    results: dict[str, zoo.Result]
    reference: str
    scenarios: list[str]
    user: npt.NDArray[np.int32]
    """(L,) codes of the lists' users."""
    figures: dict[Key, list[kinds.Figures]]
    differences: dict[Key, seesaw.Difference]
    plain: dict[str, seesaw.Difference]
    """By scenario, PEPNet less the shared bottom, first objective."""
    solo: dict[Key, seesaw.Difference]
    """To networks of one scenario and one objective, if they took part."""
    notices: list[str]

    @property
    def against(self) -> dict[str, dict[Key, seesaw.Difference]]:
        """Differences by reference, where there are any."""
        both = {self.reference: self.differences, zoo.SOLO: self.solo}
        return {name: found for name, found in both.items() if found}

    @property
    def codes(self) -> list[int]:
        """Hashes of `scenarios`."""
        return [code for _, code in quality.scenarios_of(self.config, self.plan.inputs)]

    def mean(self, figure: str, key: Key) -> float:
        """Over seeds; NaN where the figure does not exist."""
        return float(np.mean([getattr(run, figure) for run in self.figures[key]]))

    def kind(self, objective: int) -> kinds.Kind:
        """How an objective is judged."""
        return kinds.KINDS[self.config.objectives[objective].kind]

    def worth(self, key: Key) -> float:
        """The figure in which models are compared, over seeds; NaN where it does not exist."""
        return self.mean(self.kind(key.objective).headline, key)

    def rows(self, at: npt.NDArray[np.int64], objective: int) -> tuple[npt.NDArray[np.int64], kinds.Rows]:
        """Those of the rows `at`, in ascending order, that have a label of the objective, and what to judge them by."""
        d = self.plan.inputs
        at = at[np.isfinite(d.label[at, objective])]
        of = np.searchsorted(d.start, at, "right") - 1
        return at, kinds.Rows(d.label[at, objective], d.group[at], of, self.user[of])

    def scores(self, name: str, at: npt.NDArray[np.int64], objective: int) -> list[npt.NDArray[np.float32]]:
        """Predictions (n, outputs) of an objective for the rows `at`, one array per seed."""
        part = losses.plan(self.config.objectives).parts[objective]
        return [p[at, part.at : part.at + part.width] for p in self.results[name].predictions]

    @property
    def objectives(self) -> list[str]:
        """Names, in order."""
        return [o.name for o in self.config.objectives]

    @property
    def best(self) -> str | None:
        """The model of the table that is best at the first objective; floors, references and variants do not count."""
        out = (*zoo.BASELINES, *zoo.FLOORS, zoo.ALONE, zoo.SOLO)
        worth = {
            name: self.worth(Key(name, "", 0)) for name in self.results if name not in out and not name.endswith(zoo.AT_ONCE)
        }
        worth = {name: value for name, value in worth.items() if np.isfinite(value)}
        return max(worth, key=lambda name: worth[name]) if worth else None


def label_of(config: configuration.Config, planned: protocols.Plan) -> str:
    """The protocol's name in tables and ids: `-ids` where P reads no real-time features."""
    f = config.features
    return "P-ids" if planned.name == "P" and not (f.statistics or f.recent) else planned.name


def make(
    config: configuration.Config, planned: protocols.Plan, results: Mapping[str, zoo.Result], reference: str, resamples: int
) -> Study:
    """Judge results; entrants without predictions become notices."""
    notices = [r.problem for r in results.values() if r.problem]
    own = {name: r for name, r in results.items() if not r.problem}
    cells = list(_cells(config, planned))
    user = np.unique(planned.inputs.user, return_inverse=True)[1].astype(np.int32)
    study = Study(
        label_of(config, planned), config, planned, own, reference, list(dict.fromkeys(c.scenario for c in cells if c.scenario)),
        user, {}, {}, {}, {}, notices,
    )  # fmt: skip
    weight = seesaw.weights(int(user.max()) + 1, 0, resamples)
    for cell in cells:
        _judge(study, cell, weight)
    return study


def _cells(config: configuration.Config, planned: protocols.Plan) -> Iterator[Cell]:
    of_row = np.repeat(planned.inputs.scenario, np.diff(planned.inputs.start))
    for o in range(len(config.objectives)):
        yield Cell("", o, np.flatnonzero(planned.counted))
        for name, code in quality.scenarios_of(config, planned.inputs):
            yield Cell(name, o, np.flatnonzero(planned.counted & (of_row == code)))


def _judge(study: Study, cell: Cell, weight: npt.NDArray[np.int32]) -> None:
    """Add the figures of one cell to the study."""
    kind = study.config.objectives[cell.objective].kind
    at, rows = study.rows(cell.rows, cell.objective)
    scores = {name: study.scores(name, at, cell.objective) for name in study.results}
    for name, runs in scores.items():
        study.figures[Key(name, cell.scenario, cell.objective)] = [kinds.judge(kind, rows, run) for run in runs]
    if not len(at) or _told_scarce(study, cell, kind, rows):
        return
    pair = set(PLAIN) <= set(scores) and cell.objective == 0
    needed = set(scores) if study.reference in scores else set(PLAIN) if pair else set()
    areas = {name: kinds.area(kind, rows, runs, weight) for name, runs in scores.items() if name in needed}
    for reference, found in ((study.reference, study.differences), (zoo.SOLO, study.solo)):
        if reference in areas:
            for name, own in areas.items():
                if name != reference:
                    found[Key(name, cell.scenario, cell.objective)] = seesaw.difference(own, areas[reference])
    if pair and cell.scenario:
        study.plain[cell.scenario] = seesaw.difference(areas[PLAIN[0]], areas[PLAIN[1]])


def _told_scarce(study: Study, cell: Cell, kind: str, rows: kinds.Rows) -> bool:
    """Whether the cell has too few rows of a sort to compare anybody, which becomes a notice."""
    fewest, what = kinds.least(kind, rows)
    if fewest >= seesaw.LEAST_OF_A_KIND:
        return False
    where = f"scenario {cell.scenario}" if cell.scenario else "the log"
    lost = "AUC, GAUC and differences" if kind == "binary" else f"{kinds.KINDS[kind].title} and differences"
    without = f"{lost} do not exist there" if not fewest else "differences are left out there"
    study.notices.append(
        f'{where} has {fewest} rows with {what} "{study.objectives[cell.objective]}" among the {len(rows.label):,} that count: '
        f"{without}"
    )
    return True


def rows_of(study: Study, data: str, whole: bool, command: str) -> list[report.Row]:
    """The report. `whole`: the data set is complete, so that its targets hold."""
    rows = []
    for key, runs in study.figures.items():
        kind = study.kind(key.objective)
        for figure, better in kind.better.items():
            values = [float(getattr(run, figure)) for run in runs]
            name = f"{study.label}/{figure}/{_suffix(study, key)}"
            rows.append(report.row(name, values, kind.units[figure], better=better, command=command))
    for name, r in study.results.items():
        head, n = study.label, study.plan.inputs.rows
        rows.append(report.row(f"{head}/parameters/{name}", r.parameters, "numbers", better="lower", command=command))
        rows.append(report.row(f"{head}/rows_per_s/{name}", n / max(r.seconds, 1e-9), "rows of the log/s", command=command))
        rows.append(
            report.row(f"{head}/memory/{name}", r.memory_mb, "MB of parameters and optimiser", better="lower", command=command)
        )
    for reference, differences in study.against.items():
        for key, d in differences.items():
            unit = study.kind(key.objective).title
            line = report.row(f"{study.label}/over_{reference}/{_suffix(study, key)}", d.value, unit, command=command)
            other = study.worth(key._replace(name=reference))
            rows.append(msgspec.structs.replace(line, stderr=d.stderr, peer=f"{reference} = {other:.6g}, p = {d.p:.2g}"))
    rows.append(report.row(f"{study.label}/notices", len(study.notices), "cells or models", better="lower", command=command))
    if study.reference == zoo.ALONE:
        rows += _verdicts(study, data, whole, command)
    return rows


def _suffix(study: Study, key: Key) -> str:
    several = [study.objectives[key.objective]] if len(study.objectives) > 1 else []
    return "/".join([key.name, *([key.scenario] if key.scenario else []), *several])


def _verdicts(study: Study, data: str, whole: bool, command: str) -> Iterator[report.Row]:
    """Rows that pass or miss."""
    best = study.best
    if best is None:
        return
    late = study.label != "P-ids" or study.plan.inputs.lag.rows >= study.config.quality.block_rows
    targets = ML1M_TARGETS.get(study.label, {}) if data == "ml1m" and whole and late else {}
    kind = study.kind(0)
    for figure, better in kind.better.items():
        values = [float(getattr(run, figure)) for run in study.figures[Key(best, "", 0)]]
        name = f"{study.label}/best/{figure}"
        line = report.row(name, values, kind.units[figure], better=better, target=targets.get(figure), command=command)
        yield msgspec.structs.replace(line, peer=best)
    # The other two are for known truth and for correctness on few clicks, where nobody must win.
    beaten = study.scenarios if data not in {*SIMULATED, "obd"} else []
    for scenario, (o, objective) in itertools.product(beaten, enumerate(study.objectives)):
        headline, title = study.kind(o).headline, study.kind(o).title
        rivals = {name: study.worth(Key(name, scenario, o)) for name in zoo.BASELINES if name in study.results}
        if not rivals or not all(np.isfinite(v) for v in rivals.values()):
            continue
        rival = max(rivals, key=lambda name: rivals[name])
        values = [float(getattr(run, headline)) for run in study.figures[Key(best, scenario, o)]]
        name = f"{study.label}/best/{headline}/{scenario}" + (f"/{objective}" if len(study.objectives) > 1 else "")
        yield report.row(name, values, title, peer=(rival, rivals[rival]), command=command)
    for scenario, d in study.plain.items():
        yield _not_below(f"{study.label}/{PLAIN[0]}_over_{PLAIN[1]}/{scenario}", d, kind.title, command)
    if data in SIMULATED and whole:
        yield from _known_truth(study, command)


def _not_below(name: str, d: seesaw.Difference, title: str, command: str) -> report.Row:
    line = report.row(name, d.high, f"{title}, upper end of 95 %", target=0.0, command=command)
    return msgspec.structs.replace(line, stderr=d.stderr, peer=f"difference {d.value:+.4f}, p = {d.p:.2g}")


def _known_truth(study: Study, command: str) -> Iterator[report.Row]:
    """On the simulated seesaw the configured model, the library's default, must share where it helps and do no harm elsewhere."""
    for (name, scenario, o), d in study.differences.items():
        if name != study.config.model.name or not scenario:
            continue
        suffix = f"{scenario}/{study.objectives[o]}" if len(study.objectives) > 1 else scenario
        yield _not_below(f"{study.label}/no_harm/{suffix}", d, study.kind(o).title, command)
        if scenario in SIMULATED_SMALL:
            p = d.p if d.value > 0 else 1.0
            line = report.row(f"{study.label}/shared_effect/{suffix}", p, "p", better="lower", target=SHARED_P, command=command)
            yield msgspec.structs.replace(line, peer=f"{name} over alone {d.value:+.4f}")
    for (name, scenario, o), d in study.solo.items():
        if name == study.config.model.name and scenario:
            yield _not_below(f"{study.label}/double_seesaw/{scenario}/{study.objectives[o]}", d, study.kind(o).title, command)
