"""What adaptation gains, where and for whom: every algorithm on the same inputs, against no adaptation and one bias per task."""

import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from learner import episodes
from learner.meta.registry import META_LEARNERS
from state import config as configuration
from thousandfold.bench import baselines, figures, protocol, quality, report

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Say = Callable[[str], None]
Settings = dict[str, Any]
OFF, BIAS_TUNING, FINE_TUNE = "off", "bias_tuning", "fine_tune_only"
VARIANTS = (OFF, BIAS_TUNING, FINE_TUNE, *sorted(META_LEARNERS))
SUPPORT = ((0, 0), (1, 1), (2, 4), (5, 8), (9, 16), (17, 32))
"""Classes of support rows, from and to; a support set holds `support.size` at most."""
DECILES = 10
FIGURES = ("auc", "gauc")
GRID: dict[str, tuple[Any, ...]] = {
    "inner_rate": (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0),
    "inner_steps": (1, 2, 3, 5),
    "weight": (0.25, 0.5, 1.0),
    "support_rows": (16, 32),
    "prior_rows": (0.0, 4.0, 16.0),
    "inner_decay": (0.0, 1.0),
    "half_life_s": (0.0, 86_400.0, 2_592_000.0),
}
"""What `choose` tries for each algorithm, one setting after the other, each with the best values of those before it."""
TARGETS = {"auc": 0.030, "bias_tuning": 0.0, "support/0": -0.001}
"""MovieLens-1M by ids alone: AUC over no adaptation, AUC over bias tuning, AUC over no adaptation without support."""


class Run(NamedTuple):
    """Predictions (R,) of the first objective, adapted and by the plain tower, one array a seed; seconds a pass."""

    adapted: list[F32]
    unadapted: list[F32]
    seconds: float


class Parts(NamedTuple):
    """Which rows (R,) count, by name: "" is all after the burn-in; classes of support, and tenths of the tasks by size."""

    support: dict[str, Bools]
    decile: dict[str, Bools]
    scenario: dict[str, Bools]
    whole: Bools

    def every(self) -> dict[str, Bools]:
        """All of them, by their part of a row's id."""
        return {"": self.whole, **self.support, **self.decile, **self.scenario}


def configured(config: configuration.Config, variant: str, chosen: Mapping[str, Settings]) -> configuration.Config:
    """The configuration of a variant, with the settings chosen for it; fine-tuning adapts as first-order MAML does.

    Raises:
        ConfigError: there is no such variant, or a setting is not one of [meta].
    """
    if variant not in VARIANTS:
        raise configuration.ConfigError(f'no variant "{variant}"; there are {", ".join(VARIANTS)}')
    own: Settings = {"algorithm": variant, "mode": "on"}
    if variant in {OFF, BIAS_TUNING}:
        own, chosen = {"algorithm": "fomaml", "mode": "off"}, {}
    elif variant == FINE_TUNE:
        own = {"algorithm": "fomaml", "mode": "fine_tune_only"}
    try:
        meta = msgspec.convert(
            msgspec.to_builtins(config.meta) | chosen.get(variant, {}) | own, configuration.MetaLearning, strict=True
        )  # fmt: skip
    except msgspec.ValidationError as error:
        raise configuration.ConfigError(f"settings of {variant}: {error}") from error
    return msgspec.structs.replace(config, meta=meta)


def check(config: configuration.Config, variants: Sequence[str], chosen: Mapping[str, Settings]) -> None:
    """Fail before the work on a variant or a setting that does not exist.

    Raises:
        ConfigError: see `configured`.
    """
    for variant in variants:
        configured(config, variant, chosen)


def measure(
    config: configuration.Config, inputs: protocol.Inputs, variants: Sequence[str], chosen: Mapping[str, Settings],
    seeds: Sequence[int], progress: quality.Progress,
) -> dict[str, Run]:  # fmt: skip
    """Run the variants. No adaptation always runs, and bias tuning on it, whatever was asked for."""
    found: dict[str, Run] = {}
    for variant in (OFF, *(v for v in variants if v not in {OFF, BIAS_TUNING})):
        began, passes = time.monotonic(), []
        for seed in seeds:
            own = quality.override(configured(config, variant, chosen), "learner.seed", seed)
            passes.append(protocol.run(own, inputs, progress.stage(f"{variant}, seed {seed}")))
        seconds = (time.monotonic() - began) / len(seeds)
        found[variant] = Run([p.adapted[:, 0] for p in passes], [p.unadapted[:, 0] for p in passes], seconds)
    began, plain = time.monotonic(), found[OFF].adapted
    rate = chosen.get(BIAS_TUNING, {}).get("rate", config.quality.bias_tuning_rate)
    tuned = [baselines.bias_tuning(inputs, 0, p, rate) for p in plain]
    return {
        OFF: found.pop(OFF), BIAS_TUNING: Run(tuned, plain, (time.monotonic() - began) / len(seeds)), **found,
    }  # fmt: skip


def support_rows(config: configuration.Config, inputs: protocol.Inputs) -> I64:
    """(R,) rows in the support set of each row's list when it was scored."""
    known, counts = protocol.Supports(config, inputs), []
    for first, last in episodes.cut(np.diff(inputs.start), config.quality.block_rows):
        counts.append(known.of(first, last)[0])
    return np.repeat(np.concatenate(counts), np.diff(inputs.start))


def parts(config: configuration.Config, inputs: protocol.Inputs) -> Parts:
    """The parts in which gains are told."""
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


class Told(NamedTuple):
    """AUC and GAUC of one variant on one part, one value a seed: as adapted, over its own plain tower, over no adaptation."""

    adapted: list[figures.Figures]
    unadapted: list[figures.Figures]
    none: list[figures.Figures]

    def of(self, figure: str) -> list[float]:
        """The figure itself."""
        return [float(getattr(f, figure)) for f in self.adapted]

    def gain(self, figure: str) -> list[float]:
        """Adapted minus unadapted, of the same model."""
        return [float(getattr(a, figure) - getattr(b, figure)) for a, b in zip(self.adapted, self.unadapted, strict=True)]

    def over_none(self, figure: str) -> list[float]:
        """Over the model that was trained without meta-learning and does not adapt."""
        return [float(getattr(a, figure) - getattr(b, figure)) for a, b in zip(self.adapted, self.none, strict=True)]


Table = dict[tuple[str, str], Told]


def tell(inputs: protocol.Inputs, runs: Mapping[str, Run], where: Parts) -> Table:
    """Figures of every variant on every part: (variant, part)."""
    label, group, out = inputs.label[:, 0], inputs.group, Table()

    def every(scores: Sequence[F32], rows: Bools) -> list[figures.Figures]:
        return [figures.figures(group[rows], label[rows], s[rows]) for s in scores]

    for part, rows in where.every().items():
        none = every(runs[OFF].adapted, rows)
        for variant, run in runs.items():
            if variant == OFF:
                out[variant, part] = Told(none, none, none)
            else:
                plain = none if variant == BIAS_TUNING else every(run.unadapted, rows)
                out[variant, part] = Told(every(run.adapted, rows), plain, none)
    return out


def rows_of(
    features: str, table: Table, runs: Mapping[str, Run], where: Parts, targets: Mapping[str, float], judged: str, command: str
) -> list[report.Row]:
    """The report. `judged` is the variant that must reach the targets (`TARGETS`), chosen before these rows were seen."""
    rows, units = [], {"auc": "AUC", "gauc": "AUC in a group"}
    for (variant, part), figure in itertools.product(table, FIGURES):
        told, name = table[variant, part], f"{features}/{variant}{part}"
        if not where.every()[part].any():
            continue
        rows.append(report.row(f"{figure}/{name}", told.of(figure), units[figure], command=command))
        if variant == OFF:
            continue
        target = targets.get(part[1:] or "auc") if variant == judged and figure == "auc" else None
        rows.append(report.row(f"gain_{figure}/{name}", told.gain(figure), units[figure], command=command))
        rows.append(
            report.row(f"over_none_{figure}/{name}", told.over_none(figure), units[figure], target=target, command=command)
        )  # fmt: skip
        if not part and variant != BIAS_TUNING:
            peer = table[BIAS_TUNING, part].of(figure)
            over = [a - b for a, b in zip(told.of(figure), peer, strict=True)]
            target = targets.get("bias_tuning") if variant == judged and figure == "auc" else None
            rows.append(
                report.row(f"over_bias_tuning_{figure}/{name}", over, units[figure], target=target, command=command)
            )  # fmt: skip
    for variant, run in runs.items():
        rate = len(run.adapted[0]) / max(run.seconds, 1e-9)
        rows.append(report.row(f"rows_per_s/{features}/{variant}", rate, "rows/s", command=command))
    return rows


def choose(
    config: configuration.Config, inputs: protocol.Inputs, variants: Sequence[str], say: Say = print
) -> dict[str, Settings]:
    """Settings of every variant by the mean of AUC and GAUC on the first fifth of the log, of which half is burn-in; seed 0.

    The variant that then scores best is "judged", among those that meta-learn.
    """
    part = inputs.head(round(quality.CHOICE_SHARE * inputs.rows))
    counted = np.arange(part.rows) >= part.rows // 2
    label, group = part.label[counted, 0], part.group[counted]

    def judge(what: str, score: F32) -> float:
        found = figures.figures(group, label, score[counted])
        say(f"{what}: AUC {found.auc:.4f}, GAUC {found.gauc:.4f}, logloss {found.logloss:.4f}")
        return statistics.fmean((found.auc, found.auc if np.isnan(found.gauc) else found.gauc))

    plain = protocol.run(configured(config, OFF, {}), part).adapted[:, 0]
    judge(OFF, plain)
    rates = quality.BASELINE_GRIDS["quality.bias_tuning_rate"]
    tuned = {r: judge(f"{BIAS_TUNING}: rate = {r}", baselines.bias_tuning(part, 0, plain, r)) for r in rates}
    chosen: dict[str, Settings] = {BIAS_TUNING: {"rate": max(tuned, key=lambda r: tuned[r])}}
    worth: dict[str, float] = {}
    for variant in (v for v in variants if v not in {OFF, BIAS_TUNING}):
        chosen[variant], worth[variant] = _search(config, part, variant, judge)
    learned = {v: w for v, w in worth.items() if v != FINE_TUNE}
    if learned:
        chosen["judged"] = {"variant": max(learned, key=lambda v: learned[v])}
    return chosen


def _search(
    config: configuration.Config, part: protocol.Inputs, variant: str, judge: Callable[[str, F32], float]
) -> tuple[Settings, float]:
    """The best settings of one variant and what they are worth."""

    def attempt(settings: Settings) -> float:
        told = ", ".join(f"{k} = {v}" for k, v in settings.items())
        try:
            scores = protocol.run(configured(config, variant, {variant: settings}), part).adapted[:, 0]
        except FloatingPointError:
            return 0.0
        return judge(f"{variant}: {told}", scores)

    best: Settings = {key: getattr(config.meta, key) for key in GRID}
    worth = attempt(best)
    for key, values in GRID.items():
        if key == "weight" and variant == FINE_TUNE:
            continue
        if key == "inner_decay" and best["inner_steps"] == 1:
            continue
        tried = {v: attempt({**best, key: v}) for v in values if v != best[key]} | {best[key]: worth}
        best[key] = max(tried, key=lambda v: tried[v])
        worth = tried[best[key]]
    return best, worth
