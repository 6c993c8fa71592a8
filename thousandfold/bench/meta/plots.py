"""Plots of what adaptation gains: by support, by size of the task and by scenario."""

import numpy as np

from thousandfold.bench import pages
from thousandfold.bench.meta import gains, study, tables


def pictures(found: study.Study) -> dict[str, bytes]:
    """PNG files by name."""
    return {f"{found.features} by {kind}": over_none(found, kind) for kind in tables.KINDS}


def over_none(found: study.Study, kind: str) -> bytes:
    """AUC and GAUC over no adaptation with errors of one standard error, a line for each variant, by one kind of part."""
    plt = pages.pyplot()
    parts = list(getattr(found.where, kind))
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.2))
    shown = [variant for variant in found.runs if variant != gains.OFF]
    for axis, (name, title) in zip(axes, study.FIGURES.items(), strict=True):
        for k, variant in enumerate(shown):
            points = [found.table[variant, part].over_none(name) for part in parts]
            where = np.arange(len(parts)) + 0.4 * (k + 0.5) / len(shown) - 0.2
            style = "--" if variant in {gains.BIAS_TUNING, gains.REAL_TIME, gains.FINE_TUNE} else "-"
            values, errors = ([p.value for p in points], [p.stderr for p in points])
            axis.errorbar(where, values, errors, linestyle=style, linewidth=1.2, capsize=2, label=variant)
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set_xticks(range(len(parts)), [part.rpartition("/")[2] for part in parts])
        axis.set_xlabel(tables.KINDS[kind])
        axis.set_title(f"{found.features}: {title} over no adaptation", fontsize=10)
        axis.grid(alpha=0.3)
    axes[-1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return pages.png(figure)
