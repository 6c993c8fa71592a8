"""`thousandfold bench cold`: MeLU's cold-start protocol on MovieLens-1M, with the best known cells as targets."""

import itertools
import pathlib
import sys
from collections.abc import Sequence
from typing import Annotated

import msgspec
import tomli_w
import typer
from rich.console import Console
from rich.table import Table

from state import config as configuration
from thousandfold import specs
from thousandfold.bench import chosen as chosen_file
from thousandfold.bench import cold_makers, cold_states, cold_study, quality, report
from thousandfold.data import makers, ml1m

TARGETS = {
    ("old/old", "mae"): 0.760, ("new/old", "mae"): 0.771, ("old/new", "mae"): 0.893, ("new/new", "mae"): 0.890,
    ("old/old", "ndcg1"): 0.717, ("new/old", "ndcg1"): 0.709, ("old/new", "ndcg1"): 0.581, ("new/new", "ndcg1"): 0.593,
}  # fmt: skip
"""The best cells of a prototype of this protocol: among supervised learning with fine-tuning, shrunk biases, MAML, MeLU's own."""
TWO_SIDED = 1.96
SETTINGS: dict[cold_states.Asking, str] = {"newest": "ml1m_cold_settings", "random": "ml1m_cold_settings_random"}
"""What `--choose` found for each way to ask; files in `benchmarks/cold_start/`."""
Runs = list[dict[str, cold_study.Told]]
"""One a seed."""
Chosen = dict[str, cold_study.Settings]


def read(file: pathlib.Path) -> Chosen:
    """What `--choose` wrote: settings by variant.

    Raises:
        ConfigError: the file cannot be read.
    """
    return chosen_file.read(file, Chosen, "cold")


def judged(chosen: Chosen, variants: Sequence[str]) -> str:
    """The variant that must reach the targets: of those that meta-learn, the best where settings were chosen."""
    ours = [v for v in variants if v in cold_study.META]
    return max(ours, key=lambda v: chosen.get(v, cold_study.Settings()).worth, default="")


def tables(runs: Runs, asking: cold_states.Asking) -> list[Table]:
    """Every figure, a table each: variants by quadrants, means over seeds."""
    found = []
    for figure in cold_states.FIGURES:
        shown = Table(title=f"{figure}, user/movie, {asking} ten asked, {len(runs)} seeds")
        shown.add_column("variant")
        for quadrant in cold_states.QUADRANTS:
            shown.add_column(quadrant, justify="right")
        for variant in runs[0]:
            told = [report.row("", _of(runs, variant, quadrant, figure), "") for quadrant in cold_states.QUADRANTS]
            cells = ["–" if r.value is None else f"{r.value:.4f}" + (f" ± {r.stderr:.4f}" if r.stderr else "") for r in told]
            shown.add_row(variant, *cells)
        found.append(shown)
    return found


def _of(runs: Runs, variant: str, quadrant: str, figure: str) -> list[float]:
    return [run[variant][quadrant][figure] for run in runs]


def rows_of(runs: Runs, best: str, asking: cold_states.Asking = "newest") -> list[report.Row]:
    """The report. `best` must beat the cells of new movies, and be within two standard errors of those of old ones.

    Rows begin with `cold/`, with `cold/random/` where ten at random were asked.

    A cell is the best of several methods, so beside them stands, without a bar, the best variant of each draw.
    """
    rows, root = [], "cold" if asking == "newest" else f"cold/{asking}"
    for variant, quadrant, figure in itertools.product(runs[0], cold_states.QUADRANTS, cold_states.FIGURES):
        better: report.Better = "lower" if figure == "mae" else "higher"
        values = _of(runs, variant, quadrant, figure)
        cell = TARGETS.get((quadrant, figure)) if variant == best else None
        new = quadrant.endswith("/new")
        name, unit = f"{figure}/{quadrant}/{variant}", {"mae": "stars", "auc": "AUC"}.get(figure, "nDCG")
        told = report.row(f"{root}/{name}", values, unit, better=better, target=cell if new else None)
        rows.append(told)
        if cell is not None and told.value is not None and not new:
            reach = TWO_SIDED * (told.stderr or 0.0)
            value = told.value + (reach if better == "higher" else -reach)
            rows.append(report.row(f"{root}/interval/{name}", value, f"{unit}, better end of 95 %", better=better, target=cell))
        if variant != best and best:
            over = [a - b for a, b in zip(_of(runs, best, quadrant, figure), values, strict=True)]
            rows.append(report.row(f"{root}/over/{name}", over, f"{unit}, {best} less {variant}", better=better))
    for quadrant, figure in TARGETS:
        better, best_of, unit = ("lower", min, "stars") if figure == "mae" else ("higher", max, "nDCG")
        values = [best_of(told[quadrant][figure] for told in run.values()) for run in runs]
        rows.append(report.row(f"{root}/best/{figure}/{quadrant}", values, f"{unit}, best variant of each draw", better=better))
    return rows


def _makers(config: configuration.Config, ratings: ml1m.Ratings, console: Console) -> makers.Makers | None:
    """Who made the movies, if a feature asks for it."""
    if not cold_makers.declared(config):
        return None
    return makers.load(ratings.item_id.tolist(), ratings.year.tolist(), say=console.print)


app = typer.Typer()


@app.command("cold")
def command(
    variants: Annotated[str, typer.Option(help="comma-separated")] = ",".join(cold_study.VARIANTS),
    seeds: Annotated[int, typer.Option(min=1, max=20, help="draws of old users; --choose: in the training part")] = 3,
    asked: Annotated[cold_states.Asking, typer.Option(help="which ten of a task: newest, or random as in MeLU")] = "newest",
    choose: Annotated[bool, typer.Option("--choose", help="choose settings inside the training part and write them")] = False,
    settings: Annotated[pathlib.Path | None, typer.Option(help="settings that --choose wrote, or where it shall write")] = None,
    spec: Annotated[pathlib.Path | None, typer.Option(help="another configuration of the features and the model")] = None,
    report_file: Annotated[pathlib.Path | None, typer.Option("--report", help="write the figures as JSON")] = None,
) -> None:
    """MAE, nDCG@1, nDCG@3 and AUC for old and new users on old and new movies, in MeLU's protocol."""
    console = Console(width=None if sys.stdout.isatty() else 150)
    config, names = configuration.load(spec or specs.path("ml1m_cold")), quality.listed(variants)
    unknown = [v for v in names if v not in cold_study.VARIANTS]
    if unknown:
        raise configuration.ConfigError(f'no variant "{unknown[0]}"; there are {", ".join(cold_study.VARIANTS)}')
    ratings = ml1m.load(say=console.print)
    found, told = cold_states.read(config, ratings), _makers(config, ratings, console)

    def rows_for(lists: cold_states.Lists) -> cold_states.Rows:
        known = cold_states.known(lists)
        return found if told is None else cold_makers.filled(config, found, known, ratings, told)

    def draw(states: cold_states.States) -> cold_study.Draw:
        return [cold_study.Part(rows_for(lists), judged, lists) for judged, lists in cold_states.parts(states)]

    if choose:
        outer = cold_states.outer(found, 0, asked)
        draws = [draw(cold_states.inner(found, outer, seed, asked)) for seed in range(seeds)]
        text = tomli_w.dumps(msgspec.to_builtins(cold_study.choose(config, draws, names, console.print)))
        console.print(f"\n# chosen inside the training part\n{text}", markup=False)
        if settings is not None:
            settings.write_text(text, encoding="utf-8")
        return
    chosen = read(settings or specs.path(SETTINGS[asked])) if settings or spec is None else {}
    draws = [draw(cold_states.outer(found, seed, asked)) for seed in range(seeds)]
    runs = [cold_study.measure(config, own, names, chosen, seed, console.print) for seed, own in enumerate(draws)]
    for shown in tables(runs, asked):
        console.print(shown)
    rows = rows_of(runs, judged(chosen, names), asked)
    console.print(report.table([row for row in rows if row.passed is not None], "targets"))
    if report_file is not None:
        report.write(report_file, rows)
        console.print(f"written: {report_file}")
