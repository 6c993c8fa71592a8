"""Tables of a study."""

from collections.abc import Iterator

import numpy as np

from thousandfold.bench import report
from thousandfold.bench.grids import Grid, number
from thousandfold.bench.models import bars, seesaw, zoo
from thousandfold.bench.models import gates as inspected
from thousandfold.bench.models import study as studies

HEADS = {"gauc": "GAUC", "rmse": "RMSE", "mae": "MAE", "ndcg": "nDCG@10"}
REFERENCES = {
    zoo.ALONE: "each scenario's network on its own rows",
    zoo.SOLO: "a network of each scenario and objective on its own rows and labels",
}


def overall(study: studies.Study) -> Iterator[Grid]:
    """One per objective: every figure over all scenarios, AUC in each, and what the entrant cost."""
    for o, objective in enumerate(study.objectives):
        heads = ["model", *_heads(study, o), *(f"{study.kind(o).title} {s}" for s in study.scenarios)]
        rows = []
        for name, r in study.results.items():
            key = studies.Key(name, "", o)
            own = [number(study.worth(key._replace(scenario=s))) for s in study.scenarios]
            cost = [f"{r.parameters:,}", f"{study.plan.inputs.rows / max(r.seconds, 1e-9):,.0f}", f"{r.memory_mb:,.1f}"]
            rows.append([name, *_figures(study, key), *own, *cost])
        yield Grid(f"{study.label}, {objective}: {_caption(study)}", [*heads, "parameters", "rows/s", "MB"], rows)


def scenarios(study: studies.Study) -> Iterator[Grid]:
    """One per scenario and objective, with the difference to the reference."""
    for s in study.scenarios:
        for o, objective in enumerate(study.objectives):
            rows = []
            for name in study.results:
                key = studies.Key(name, s, o)
                d = study.differences.get(key)
                shown = ["", ""] if d is None else [f"{d.value:+.4f} ± {d.stderr:.4f}", f"{d.p:.2g}"]
                rows.append([name, *_figures(study, key), *shown])
            heads = ["model", *_heads(study, o), f"over {study.reference}", "p"]
            count = study.figures[studies.Key(next(iter(study.results)), s, o)][0].rows if study.results else 0
            yield Grid(f"{study.label}, {objective} in {s}: {count:,} rows", heads, rows)


def seesaws(study: studies.Study) -> Iterator[Grid]:
    """Every entrant against each reference, in the first figure, by scenario and objective; starred where p is below .01."""
    several = len(study.objectives) > 1
    cells = [(s, o) for s in study.scenarios for o in range(len(study.objectives))]
    heads = ["model", *(f"{s} {study.objectives[o]}" if several else s for s, o in cells), "better", "worse"]
    for reference, differences in study.against.items():
        rows = []
        for name in study.results:
            if name != reference:
                found = [differences.get(studies.Key(name, s, o)) for s, o in cells]
                clear = [d.value for d in found if d is not None and d.p < studies.SHARED_P]
                counts = [str(sum(v > 0 for v in clear)), str(sum(v < 0 for v in clear))]
                rows.append([name, *("–" if d is None else _starred(d) for d in found), *counts])
        over = f"{titles(study)} over {REFERENCES.get(reference, reference)}"
        yield Grid(
            f"{study.label}: {over} (* p < .01, bootstrap of users; cells so much better and worse)",
            heads,
            rows,
        )


def _starred(d: seesaw.Difference) -> str:
    return f"{d.value:+.4f}{'*' if d.p < studies.SHARED_P else ''}"


def gates(study: studies.Study) -> Grid | None:
    """The mean of every gate by scenario, and how far its values lie apart (standard deviation); None without gates."""
    names = dict(zip(study.codes, study.scenarios, strict=True))
    order = [names.get(code) for code in np.unique(study.plan.inputs.scenario).tolist()]
    rows = []
    for model, r in study.results.items():
        for gate, values in r.gates.items():
            shown = {name: inspected.shown(v) for name, v in zip(order, values, strict=True) if name}
            rows.append([f"{model}: {gate}", *(shown[s] for s in study.scenarios)])
    title = f"{study.label}: gates over the newest rows of a scenario: their values, of more than {inspected.FEW} mean and spread"
    return Grid(title, ["gate", *study.scenarios], rows) if rows else None


def verdicts(rows: list[report.Row]) -> Grid:
    """What has a target or a peer, and whether it is met, or not run."""
    shown = []
    for r in rows:
        untried = (r.peer or "").startswith(bars.NOT_RUN)
        if r.passed is not None or untried:
            target, verdict = "" if r.target is None else f"{r.target:g}", "pass" if r.passed else "miss"
            shown.append([r.id, number(r.value), target, r.peer or "", bars.NOT_RUN if untried else verdict])
    return Grid("targets", ["figure", "value", "target", "against", ""], shown)


def titles(study: studies.Study) -> str:
    """What is compared, by kinds of objectives."""
    return ", ".join(dict.fromkeys(study.kind(o).title for o in range(len(study.objectives))))


def _heads(study: studies.Study, objective: int) -> list[str]:
    kind = study.kind(objective)
    return [kind.title, "± se", *(HEADS.get(figure, figure) for figure in list(kind.better)[1:])]


def _figures(study: studies.Study, key: studies.Key) -> list[str]:
    headline, *others = study.kind(key.objective).better
    runs = [float(getattr(run, headline)) for run in study.figures[key]]
    stderr = f"{np.std(runs, ddof=1) / len(runs) ** 0.5:.4f}" if len(runs) > 1 and np.isfinite(runs).all() else ""
    return [
        number(study.mean(headline, key)),
        stderr,
        *(number(study.mean(figure, key)) for figure in others),
    ]


def _caption(study: studies.Study) -> str:
    counted, lag = int(study.plan.counted.sum()), study.plan.inputs.lag
    late = f", labels {lag.rows:,} rows late" if lag.rows else f", labels {lag.seconds:g} s late" if lag.seconds else ""
    return f"{studies.CAPTIONS[study.label]}{late}; {counted:,} of {study.plan.inputs.rows:,} rows count"
