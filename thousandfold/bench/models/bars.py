"""The bars of the benchmark: every figure that must be reached, and which of them no report has measured yet."""

import itertools
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from state import config as configuration
from thousandfold import specs
from thousandfold.bench import logs, quality, report
from thousandfold.bench.models import study as studies
from thousandfold.data import ml1m

NOT_RUN = "not run"
STEPS = "steps"
"""Where the bars of the training step come from: the reports of `bench training` and `bench steps`."""
IDS = "--spec benchmarks/multi_scenario/ml1m_ids_models.toml --lag 1000"


class Bar(NamedTuple):
    """A row that a report on `data` must have. Without a target it is compared with a peer of the same run."""

    data: str
    row: str
    unit: str
    better: report.Better
    target: float | None
    command: str


def bars() -> Iterator[Bar]:
    """All of them, in the order of the table."""
    yield from _ml1m()
    for data in studies.SIMULATED:
        yield from _simulated(data)
    yield from _steps()


def _ml1m() -> Iterator[Bar]:
    flags = {"P": "", "P-ids": f" {IDS}", "C": " --protocol C", "R": " --protocol R"}
    for label, targets in studies.ML1M_TARGETS.items():
        command = f"thousandfold bench models{flags[label]}"
        for figure, target in targets.items():
            yield Bar("ml1m", f"{label}/best/{figure}", quality.UNITS[figure], quality.BETTER[figure], target, command)
        for scenario in ml1m.SCENARIOS:
            yield Bar("ml1m", f"{label}/best/auc/{scenario}", "AUC", "higher", None, command)
        if label in {"P", "P-ids"}:
            pair = f"{label}/{studies.PLAIN[0]}_over_{studies.PLAIN[1]}"
            for scenario in ml1m.SCENARIOS:
                yield Bar("ml1m", f"{pair}/{scenario}", studies.UPPER_END, "higher", 0.0, command)


def _simulated(data: str) -> Iterator[Bar]:
    config = configuration.load(specs.path({"simulate": "seesaw", "simulate7": "seesaw7"}[data]))
    command = f"thousandfold bench models --data {data}"
    cells = [f"{s}/{o.name}" for s, o in itertools.product(config.scenarios.known, config.objectives)]
    for cell in cells:
        if cell.startswith(studies.SIMULATED_SMALL):
            yield Bar(data, f"P-ids/shared_effect/{cell}", "p", "lower", studies.SHARED_P, command)
    for what, cell in itertools.product(("no_harm", "double_seesaw"), cells):
        yield Bar(data, f"P-ids/{what}/{cell}", studies.UPPER_END, "higher", 0.0, command)


def _steps() -> Iterator[Bar]:
    for model in ("pepnet", "mmoe"):
        for against, target in (("torch_rechub", 4.0), ("naive_torch", 2.3)):
            yield Bar(STEPS, f"training/{model}/{against}", f"x {against}", "higher", target, "thousandfold bench training")
        yield Bar(STEPS, f"training/{model}/floor_share", "share", "higher", 0.4, "thousandfold bench training")
    for against, target in (("per_field", 20.0), ("fbgemm", 2.5)):
        yield Bar(STEPS, f"training/embedding/{against}", f"x {against}", "higher", target, "thousandfold bench training")
    for path, target in (("native", 150_000.0), ("torch", 40_000.0)):
        yield Bar(STEPS, f"steps/{path}", "rows/s", "higher", target, "thousandfold bench steps")


def collected(found: Mapping[str, Iterable[report.Row]]) -> list[report.Row]:
    """Every bar as `DATA/ROW`, from the rows found for each data set; "not run" where none of them judges it.

    A row without a verdict, such as the best AUC on a part of MovieLens, judges nothing; its value is told all the same.
    """
    known: dict[tuple[str, str], report.Row] = {}
    for data, rows in found.items():
        for line in rows:
            before = known.get((data, line.id))
            if line.passed is not None or before is None or before.passed is None:
                known[data, line.id] = line
    out = []
    for bar in bars():
        name, r = f"{bar.data}/{bar.row}", known.get((bar.data, bar.row))
        if r is not None and r.passed is not None:
            out.append(msgspec.structs.replace(r, id=name))
            continue
        told = (
            NOT_RUN
            if r is None
            else f"{NOT_RUN} as the bar asks: {r.unit}"
            if r.value is None
            else f"{NOT_RUN} whole: {r.value:.4f}"
        )
        out.append(
            report.Row(
                id=name, value=None, unit=bar.unit, target=bar.target, better=bar.better, passed=None, peer=told, stderr=None,
                command=bar.command if r is None else r.command,
            )
        )  # fmt: skip
    return out


def missing(data: str, rows: Sequence[report.Row]) -> list[report.Row]:
    """The bars of one data set that these rows do not judge, under their own ids."""
    judged = {r.id for r in rows}
    lacking = [r for r in collected({data: rows}) if r.passed is None and r.id.startswith(f"{data}/")]
    named = [msgspec.structs.replace(r, id=r.id.removeprefix(f"{data}/")) for r in lacking]
    return [r for r in named if r.id not in judged]


def read(pairs: Iterable[str]) -> dict[str, list[report.Row]]:
    """Rows of earlier reports, named as DATA=FILE; of several reports on one data set the later one counts where both judge.

    Raises:
        LogError: a pair is no DATA=FILE, names no data set with bars, or its file is no report.
    """
    names = sorted({bar.data for bar in bars()})
    found: dict[str, list[report.Row]] = {}
    for pair in pairs:
        data, _, file = pair.partition("=")
        if data not in names or not file:
            raise logs.LogError(f"--bars {pair!r}: give DATA=FILE, comma-separated, with DATA of {', '.join(names)}")
        try:
            rows = report.read(pathlib.Path(file)).rows
        except (OSError, ValueError) as error:
            raise logs.LogError(f"--bars {pair!r}: {error}; give a file that --report wrote") from error
        found.setdefault(data, []).extend(rows)
    return found
