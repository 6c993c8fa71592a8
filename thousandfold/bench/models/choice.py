"""Settings of a protocol, chosen on the first fifth of the log only and judged there as the protocol judges."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from learner import step
from state import config as configuration
from thousandfold.bench import baselines, figures, logs, protocol, quality
from thousandfold.bench.models import protocols

BURN_IN = 0.5
"""Under P, the share of the fifth that does not count."""
HELD = 0.2
"""Under C, the share of every user's rows that is held back: the newest."""
GRIDS: dict[str, tuple[Any, ...]] = {
    "model.wide": ("off", "product", "fm"),
    "model.embedding_width": (8, 16, 32),
    "learner.rows_per_step": (25, 50, 100, 250),
    "optimizer.embedding_rate": (0.005, 0.01, 0.02, 0.05),
    "optimizer.dense_rate": (0.00025, 0.001, 0.005, 0.01, 0.02, 0.05),
    "optimizer.wide_rate": (0.01, 0.03, 0.05),
    "optimizer.average": (0.998, 0.9995),
    "optimizer.gain_rate": (0.0, 0.3, 1.0),
    "meta.inner_rate": (0.1, 0.5, 1.0, 2.0),
    "meta.prior_rows": (0.0, 8.0, 32.0),
    "meta.support_rows": (16, 32),
    "meta.weight": (0.25, 0.5, 1.0),
}
"""Settings of the models, one after the other, each with the best values of those before it."""
BASELINE_GRIDS: dict[str, tuple[float, ...]] = {
    "quality.bias_rate": (0.03, 0.1, 0.3),
    "quality.fm_rate": (0.01, 0.02, 0.03, 0.05),
    "quality.fm_live_rate": (0.01, 0.02, 0.03, 0.05),
}


def grids(keys: str) -> dict[str, tuple[Any, ...]]:
    """The grids of settings named in a comma-separated list.

    Raises:
        LogError: there is no grid for one.
    """
    named = quality.listed(keys)
    for key in named:
        if key not in GRIDS:
            raise logs.LogError(f"--keys {key!r}: --choose knows {', '.join(GRIDS)}")
    return {key: GRIDS[key] for key in named}


def plan(name: str, inputs: protocol.Inputs, epochs: int = 1) -> protocols.Plan:
    """A protocol over the first fifth of the log; later rows are not in it.

    Raises:
        LogError: a part has no rows.
    """
    part = inputs.head(round(quality.CHOICE_SHARE * inputs.rows))
    return _newest_held(part) if name == "C" else protocols.plan(name, part, BURN_IN, epochs)


def _newest_held(part: protocol.Inputs) -> protocols.Plan:
    """Every user's newest rows, behind all others.

    A cut in time inside a log that has just begun leaves users that nobody has seen (nine in ten, on MovieLens), and what is
    good for them is not what keeps well for those who come back.

    Raises:
        LogError: nobody has rows enough.
    """
    rows = np.diff(part.start)
    order = np.lexsort((np.arange(len(rows)), part.user))
    user, ends = part.user[order], np.cumsum(rows[order])
    first = np.r_[True, user[1:] != user[:-1]]
    own = np.cumsum(first) - 1
    begins = (ends - rows[order])[first]
    whole = np.diff(np.r_[begins, ends[-1:]])
    held = np.zeros(len(rows), np.bool_)
    held[order] = ends - rows[order] - begins[own] >= (1 - HELD) * whole[own]
    until = int((~held).sum())
    if not 0 < until < len(rows):
        raise logs.LogError("protocol C: no user has rows to hold back; use more of the log")
    lists = np.argsort(held, kind="stable")
    found = protocols.reordered(part, lists)
    known = np.r_[np.searchsorted(found.ts[:until], found.ts[:until], "left"), np.full(len(lists) - until, until)]
    return protocols.Plan("C", found._replace(known=known), np.arange(found.rows) >= found.start[until], until, until)


def choose(
    config: configuration.Config, planned: protocols.Plan, names: Sequence[str], searched: Mapping[str, tuple[Any, ...]],
    say: Callable[[str], None] = print,
) -> dict[str, Any]:  # fmt: skip
    """What serves the models `names` best on average, by the mean of AUC and GAUC of the first objective, seed 0.

    The baselines' rates are found by themselves, those that the protocol does not read left out.
    """
    d, counted = planned.inputs, planned.counted
    label, group = d.label[counted, 0], d.group[counted]

    def judge(key: str, value: Any, score: protocols.F32) -> float:
        found = figures.figures(group, label, score[counted])
        say(f"{key} = {value}: AUC {found.auc:.4f}, GAUC {found.gauc:.4f}, logloss {found.logloss:.4f}")
        return found.auc if np.isnan(found.gauc) else (found.auc + found.gauc) / 2

    def attempt(settings: configuration.Config, key: str, value: Any) -> float:
        worth = []
        for name in names:
            own = quality.override(settings, "model.name", name)
            worth.append(judge(f"{name}: {key}", value, protocols.run(own, planned, step.Trainer(own))[:, 0]))
        return float(np.mean(worth))

    chosen: dict[str, Any] = {}
    best = attempt(config, "as configured", 0)
    for key, values in searched.items():
        section, _, setting = key.partition(".")
        now = getattr(getattr(config, section), setting)
        tried = {v: attempt(quality.override(config, key, v), key, v) for v in values if v != now} | {now: best}
        chosen[key] = max(tried, key=lambda v: tried[v])
        best = tried[chosen[key]]
        config = quality.override(config, key, chosen[key])
    known = protocol.frozen(d, planned.until)
    blocked, width = protocol.blocked(known, config.quality.block_rows), config.quality.fm_width
    models: dict[str, Callable[[float], protocols.F32]] = {
        "quality.bias_rate": lambda rate: baselines.bias(known, 0, rate),
        "quality.fm_rate": lambda rate: baselines.fm32(blocked, 0, rate, width, 0),
        "quality.fm_live_rate": lambda rate: baselines.fm32(known, 0, rate, width, 0),
    }
    unread = "quality.fm_rate" if planned.epochs else "quality.fm_live_rate"
    for key, rates in BASELINE_GRIDS.items():
        if key != unread:
            worth = {v: judge(key, v, models[key](v)) for v in rates}
            chosen[key] = max(worth, key=lambda v: worth[v])
    return chosen
