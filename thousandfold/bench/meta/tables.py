"""Tables of what adaptation gains."""

from collections.abc import Iterator, Sequence

import numpy as np

from thousandfold.bench import areas, grids, report
from thousandfold.bench.meta import gains, study
from thousandfold.bench.meta.parts import Bools

KINDS = {"support": "support rows", "decile": "tenth of the tasks by size", "scenario": "scenario"}
"""What parts are by, as fields of `Parts`."""


def verdicts(bars: Sequence[report.Row]) -> grids.Grid:
    """Bars with their targets, met or missed."""
    rows = [
        [r.id, f"{grids.number(r.value)} ± {grids.number(r.stderr)}", f"{r.target:g}", "pass" if r.passed else "miss"]
        for r in bars
    ]
    return grids.Grid("bars", ["figure", "value", "target", ""], rows)


def overall(found: study.Study) -> grids.Grid:
    """Every variant on all rows that count."""
    told = {variant: found.table[variant, ""] for variant in found.runs}
    heads = [
        "variant",
        "seeds",
        "AUC",
        "GAUC",
        "AUC over none",
        "GAUC over none",
        "AUC over bias tuning",
        "GAUC over bias tuning",
    ]
    heads += ["AUC adapted - plain", "GAUC adapted - plain", "rows/s of CPU"]
    rows = []
    for variant, run in found.runs.items():
        own, tuned = told[variant], told[gains.BIAS_TUNING]
        values = [own.value(f) for f in study.FIGURES]
        over = [own.over_none(f) for f in study.FIGURES] + [own.over(tuned, f) for f in study.FIGURES]
        over += [own.gain(f) for f in study.FIGURES]
        rate = f"{len(run.adapted[0]) / max(run.seconds, 1e-9):,.0f}"
        cells = ["" if d.value == 0 and d.stderr == 0 else signed(d) for d in over]
        rows.append([variant, str(len(run.adapted)), *(f"{v.value:.4f} ± {v.stderr:.4f}" for v in values), *cells, rate])
    counted = int(found.where.whole.sum())
    return grids.Grid(f"{found.features}: prequential, {counted:,} rows after the burn-in", heads, rows)


def by_part(found: study.Study) -> Iterator[grids.Grid]:
    """Differences by support, by size of the task and by scenario."""
    for kind, title in KINDS.items():
        parts: dict[str, Bools] = getattr(found.where, kind)
        heads = ["variant", *(f"{name.rpartition('/')[2]} ({int(rows.sum()):,})" for name, rows in parts.items())]
        for figure in study.FIGURES:
            over = [
                [variant, *(signed(found.table[variant, part].over_none(figure)) for part in parts)]
                for variant in found.runs
                if variant != gains.OFF
            ]
            yield grids.Grid(f"{found.features}: {figure.upper()} over none, by {title} (rows)", heads, over)
            gain = [
                [variant, *(signed(found.table[variant, part].gain(figure)) for part in parts)]
                for variant in found.runs
                if variant not in {gains.OFF, gains.REAL_TIME, gains.BIAS_TUNING}
            ]
            yield grids.Grid(f"{found.features}: {figure.upper()} adapted less unadapted, by {title} (rows)", heads, gain)


def signed(d: areas.Difference) -> str:
    """With its error, or a dash where there is none."""
    return "–" if not np.isfinite(d.value) else f"{d.value:+.4f} ± {d.stderr:.4f}"
