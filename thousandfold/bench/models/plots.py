"""Plots and the page of a study."""

import itertools
import pathlib
from collections.abc import Sequence

import numpy as np

from thousandfold.bench import grids, pages, quality
from thousandfold.bench.models import gates as inspected
from thousandfold.bench.models import kinds, tables, zoo
from thousandfold.bench.models import study as studies

WINDOWS, LINES = 20, 6
LEAST_ROWS = 50
"""A window with fewer rows has no point."""


def _shown(study: studies.Study) -> list[str]:
    """The models that are ahead, and those that stand in every plot."""
    always = [name for name in (*zoo.BASELINES, zoo.ALONE, zoo.SOLO) if name in study.results]
    others = [name for name in study.results if name not in always]
    worth = {name: study.worth(studies.Key(name, "", 0)) for name in others}
    ahead = sorted((n for n in others if np.isfinite(worth[n])), key=lambda n: -worth[n])[:LINES]
    return [name for name in study.results if name in {*ahead, *always}]


def over_time(study: studies.Study, objective: int = 0) -> bytes:
    """The first figure of the leading models by twentieths of the log, one picture per scenario."""
    plt, inputs, kind = pages.pyplot(), study.plan.inputs, study.config.objectives[objective].kind
    of_row = np.repeat(inputs.scenario, np.diff(inputs.start))
    codes = dict(quality.scenarios_of(study.config, inputs))
    bounds = np.linspace(np.flatnonzero(study.plan.counted)[0], inputs.rows, WINDOWS + 1).astype(int)
    figure, axes = plt.subplots(1, len(study.scenarios), figsize=(5 * len(study.scenarios), 4), sharey=True, squeeze=False)
    for axis, scenario in zip(axes[0], study.scenarios, strict=True):
        chosen = of_row == codes[scenario]
        for name in _shown(study):
            points = []
            for low, high in itertools.pairwise(bounds.tolist()):
                rows = low + np.flatnonzero(chosen[low:high] & study.plan.counted[low:high])
                at, told = study.rows(rows, objective)
                judged = kinds.judge(kind, told, study.scores(name, at, objective)[0])
                points.append(getattr(judged, kinds.KINDS[kind].headline) if len(at) >= LEAST_ROWS else np.nan)
            dashed = "--" if name in {*zoo.BASELINES, zoo.ALONE, zoo.SOLO} else "-"
            axis.plot(100 * bounds[1:] / inputs.rows, points, dashed, label=name, linewidth=1.3)
        axis.set_title(scenario)
        axis.set_xlabel("% of the rows")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel(f"{study.kind(objective).title}, {study.objectives[objective]}")
    axes[0][-1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return pages.png(figure)


def seesaw(study: studies.Study, reference: str) -> bytes:
    """Differences to a reference as a map, models by scenarios and objectives."""
    plt = pages.pyplot()
    cells = [(s, o) for s in study.scenarios for o in range(len(study.objectives))]
    names, differences = [name for name in study.results if name != reference], study.against[reference]
    found = [[differences.get(studies.Key(n, s, o)) for s, o in cells] for n in names]
    values = np.array([[np.nan if d is None else d.value for d in line] for line in found], np.float64)
    size = np.nanmax(np.abs(values), initial=1e-4)
    figure, axis = plt.subplots(figsize=(2 + 1.3 * len(cells), 1.2 + 0.38 * len(names)))
    axis.imshow(values, cmap="RdYlGn", vmin=-1.6 * size, vmax=1.6 * size, aspect="auto")
    several = len(study.objectives) > 1
    axis.set_xticks(range(len(cells)), [f"{s}\n{study.objectives[o]}" if several else s for s, o in cells])
    axis.set_yticks(range(len(names)), names)
    for (i, line), j in ((pair, j) for pair in enumerate(found) for j in range(len(cells))):
        d = line[j]
        if d is not None:
            axis.text(j, i, f"{d.value:+.4f}{'*' if d.p < studies.SHARED_P else ''}", ha="center", va="center", fontsize=8)
    axis.set_title(f"{study.label}: {tables.titles(study)} over {reference}  (* p < .01)", fontsize=10)
    return pages.png(figure)


def gates(study: studies.Study, name: str) -> bytes:
    """The values of every gate of one model, scenarios by units."""
    names = dict(zip(study.codes, study.scenarios, strict=True))
    order = [names.get(code, "other") for code in np.unique(study.plan.inputs.scenario).tolist()]
    return inspected.picture(name, study.results[name].gates, order)


def write(folder: pathlib.Path, title: str, command: str, made: Sequence[studies.Study], rows: grids.Grid) -> pathlib.Path:
    """Write `index.html`, `tables.md` and the PNG files into a folder; returns the page."""
    shown, pictures, notices = [rows] if rows.rows else [], dict[str, bytes](), list[str]()
    for study in made:
        notices += [f"{study.label}: {n}" for n in study.notices]
        shown += tables.overall(study)
        shown += tables.seesaws(study)
        for reference in study.against:
            what = "" if reference == study.reference else f" {reference}"
            pictures[f"{study.label} seesaw{what}"] = seesaw(study, reference)
        gated = tables.gates(study)
        if gated is not None:
            shown.append(gated)
        pictures |= {f"{study.label} gates of {name}": gates(study, name) for name, r in study.results.items() if r.gates}
        shown += tables.scenarios(study)
        if study.plan.name == "P" and study.results:
            for o, objective in enumerate(study.objectives):
                pictures[f"{study.label} {study.kind(o).title} over time {objective}"] = over_time(study, o)
    return pages.write(folder, title, command, shown, pictures, notices)
