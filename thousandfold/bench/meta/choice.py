"""Settings of every algorithm, found on the first fifth of a log by walking along one setting after the other."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from state import config as configuration
from thousandfold.bench import baselines, figures, logs, protocol, quality
from thousandfold.bench.meta import gains

Say = Callable[[str], None]
GRID: dict[str, tuple[Any, ...]] = {
    "inner_rate": (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0),
    "prior_rows": (0.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0),
    "support_rows": (8, 16, 32, 64),
    "inner_steps": (1, 2, 3, 5),
    "weight": (0.125, 0.25, 0.5, 1.0, 2.0),
    "inner_decay": (0.0, 0.01, 0.1),
    "half_life_s": (0.0, 2_592_000.0, 86_400.0, 3_600.0),
}
"""What is tried, in order of size; the walk goes to a neighbour as long as that is better."""
START: gains.Settings = {
    "inner_rate": 2.0, "prior_rows": 16.0, "support_rows": 32, "inner_steps": 1, "weight": 0.5, "inner_decay": 0.0,
    "half_life_s": 0.0,
}  # fmt: skip
"""Where the walk begins: the best of a first search on the first 60,000 rows of MovieLens-1M by ids."""
BIAS_RATES = (0.005, 0.02, 0.05, 0.1, 0.2, 0.4)
LEADER = "fomaml"
"""Is searched first; the others begin where it ended."""
ROUNDS = 2


def first(log: logs.Log, rows: int | None = None) -> logs.Log:
    """The lists from which settings may be chosen: the first fifth of the log, and no more than `rows` rows."""
    fifth = round(quality.CHOICE_SHARE * log.rows)
    return logs.head(log, min(rows or fifth, fifth))


def choose(
    config: configuration.Config, part: protocol.Inputs, variants: Sequence[str], known: Mapping[str, gains.Settings],
    keys: Sequence[str] = tuple(GRID), say: Say = print,
) -> dict[str, gains.Settings]:  # fmt: skip
    """Settings of the variants by the mean of AUC and GAUC on `part` of a log (see `first`), seed 0, half of it as burn-in.

    `known` is where a walk begins: at what was found for the variant before, else at what was found for first-order MAML.

    Raises:
        ConfigError: there is no such setting.
    """
    unknown = [key for key in keys if key not in GRID]
    if unknown:
        raise configuration.ConfigError(f"no setting {', '.join(unknown)} is searched; there are {', '.join(GRID)}")
    counted = (np.arange(part.rows) >= part.rows // 2) & np.isfinite(part.label[:, 0])
    label, group = part.label[counted, 0], part.group[counted]

    def judge(what: str, score: gains.F32) -> float:
        found = figures.figures(group, label, score[counted])
        say(f"{part.rows:,} rows, {what}: AUC {found.auc:.4f}, GAUC {found.gauc:.4f}, logloss {found.logloss:.4f}")
        return statistics.fmean((found.auc, found.auc if np.isnan(found.gauc) else found.gauc))

    chosen = dict(known)
    if gains.BIAS_TUNING in variants:
        plain = protocol.run(gains.configured(config, gains.OFF, {}), part).adapted[:, 0]
        judge(gains.OFF, plain)
        tuned = {r: judge(f"bias_tuning, rate {r}", baselines.bias_tuning(part, 0, plain, r)) for r in BIAS_RATES}
        chosen[gains.BIAS_TUNING] = {"rate": max(tuned, key=lambda r: tuned[r])}
    learned = [v for v in variants if v not in {gains.OFF, gains.BIAS_TUNING}]
    for variant in sorted(learned, key=lambda v: v != LEADER):
        start = {key: chosen.get(variant, chosen.get(LEADER, START)).get(key, START[key]) for key in GRID}
        own = [key for key in keys if key != "weight" or variant != gains.FINE_TUNE]
        chosen[variant] = climb(start, own, lambda s, v=variant: _worth(config, part, v, s, judge))  # type: ignore[misc]
    return chosen


def _worth(
    config: configuration.Config, part: protocol.Inputs, variant: str, settings: gains.Settings,
    judge: Callable[[str, gains.F32], float],
) -> float:  # fmt: skip
    told = ", ".join(f"{key} {value:g}" for key, value in settings.items())
    try:
        scores = protocol.run(gains.configured(config, variant, {variant: settings}), part).adapted[:, 0]
    except FloatingPointError:
        return 0.0
    return judge(f"{variant}, {told}", scores)


def climb(start: gains.Settings, keys: Sequence[str], worth: Callable[[gains.Settings], float]) -> gains.Settings:
    """The best settings on the way from `start` to neighbours on `GRID`, key after key, until a round moves nothing."""
    seen: dict[tuple[Any, ...], float] = {}

    def value(settings: gains.Settings) -> float:
        at = tuple(settings[key] for key in GRID)
        if at not in seen:
            seen[at] = worth(settings)
        return seen[at]

    best = dict(start)
    for _ in range(ROUNDS):
        before = dict(best)
        for key in keys:
            if key == "inner_decay" and best["inner_steps"] == 1:
                continue
            best = _along(best, key, value)
        if best == before:
            break
    return best


def _along(best: gains.Settings, key: str, value: Callable[[gains.Settings], float]) -> gains.Settings:
    """Walk along one setting: upwards while that is better, and if the first step was not, downwards."""
    grid = GRID[key] if best[key] in GRID[key] else sorted((*GRID[key], best[key]))
    for way in (1, -1):
        at, moved = grid.index(best[key]), False
        while 0 <= at + way < len(grid) and value({**best, key: grid[at + way]}) > value(best):
            at, moved = at + way, True
            best = {**best, key: grid[at]}
        if moved:
            break
    return best
