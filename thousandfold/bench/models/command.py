"""The command: which log, which protocols, which models, and where the results go."""

import itertools
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Annotated

import typer
from rich.console import Console

from state import config as configuration
from thousandfold import specs
from thousandfold.bench import grids, logs, pages, protocol, quality, report
from thousandfold.bench.models import bars, choice, plots, protocols, tables, zoo
from thousandfold.bench.models import study as studies
from thousandfold.data import obd, simulator, worlds

SIMULATED_ROWS = 300_000
WORLDS = {"simulate": worlds.SEESAW, "simulate7": worlds.SEESAW7}
OWN = {
    "ml1m": ("ml1m", "ml1m_cut", "ml1m_random"),
    "simulate": ("seesaw", "seesaw", "seesaw"),
    "simulate7": ("seesaw7", "seesaw7", "seesaw7"),
    "obd": ("obd", "obd", "obd"),
}
"""Worked examples of the data sets, by protocol in the order of `protocols.PROTOCOLS`."""
Say = Callable[[str], None]


def open_log(
    config: configuration.Config, data: str, actions: pathlib.Path | None, limit: int | None, say: Say = print,
    world_seed: int | None = None,
) -> logs.Log:  # fmt: skip
    """Like `quality.open_log`, with the simulated seesaws as "simulate" and "simulate7" and the small Open Bandit Data as "obd".

    Objectives may be of single scenarios and of any kind, as far as the log has their labels. `world_seed` draws another world
    than the one that is reported (0).

    Raises:
        LogError: the file cannot be measured, or it is a log and a seed was given.
        DataError: the data set cannot be had.
    """
    if world_seed is not None and data not in WORLDS:
        raise logs.LogError(f"--world-seed {world_seed}: --data {data} is one log; it is for {', '.join(WORLDS)}")
    if data == "obd":
        return quality.open_log(config, str(obd.load(say=say)), actions, limit, say, what="")
    if data not in WORLDS:
        if data != "ml1m" and not pathlib.Path(data).is_file():
            raise logs.LogError(f"--data {data}: no such file; give {', '.join(OWN)} or a Parquet file")
        return quality.open_log(config, data, actions, limit, say, what="")
    made, rows = simulator.Simulator(WORLDS[data], world_seed or 0), limit or SIMULATED_ROWS
    found, held = [], 0
    for block in made.events():
        found.append(block)
        held += len(block.item)
        if held >= rows:
            break
    return logs.head(logs.from_blocks(config, made.world, found), rows)


def configured(data: str, spec: pathlib.Path | None, name: str) -> configuration.Config:
    """The configuration under which a protocol reads this data.

    Raises:
        LogError: a file of one's own without `--spec`, or no such protocol.
        ConfigError: the file is no configuration.
    """
    if spec is None and data not in OWN:
        raise logs.LogError(f"--data {data} needs --spec SPEC.toml, the configuration that declares its features; see examples/")
    if name not in protocols.PROTOCOLS:
        raise logs.LogError(f"--protocol {name!r}: there are {', '.join(protocols.PROTOCOLS)}")
    file = spec or specs.path(OWN[data][protocols.PROTOCOLS.index(name)])
    return protocols.settings_of(configuration.load(file), name)


def study(
    config: configuration.Config, planned: protocols.Plan, entrants: list[zoo.Entrant], bench: zoo.Bench, resamples: int,
    ablation: bool = False, references: Sequence[str] = zoo.REFERENCES,
) -> studies.Study:  # fmt: skip
    """Run everybody and judge. The reference is each scenario's own network, or, of ablations, PEPNet as configured.

    With several objectives, networks of one scenario and one objective are the second reference: the double seesaw. Those that
    `references` does not name are left out.
    """
    results = {entrant.name: bench.model(entrant) for entrant in entrants}
    if not ablation and zoo.ALONE in references:
        results[zoo.ALONE] = bench.alone(zoo.Entrant(zoo.ALONE, zoo.single(config)))
    if not ablation and zoo.SOLO in references and len(config.objectives) > 1:
        results[zoo.SOLO] = bench.solo(zoo.Entrant(zoo.SOLO, zoo.single(config)))
    results.update(bench.baselines(config))
    return studies.make(config, planned, results, entrants[0].name if ablation else zoo.ALONE, resamples)


app = typer.Typer()


@app.command()
def models(
    data: Annotated[str, typer.Option(help="ml1m, simulate, simulate7, obd, or a Parquet file of shown rows")] = "ml1m",
    spec: Annotated[pathlib.Path | None, typer.Option(help="the configuration with the feature spec; data sets have one")] = None,
    actions: Annotated[pathlib.Path | None, typer.Option(help="a Parquet file of actions, for --data FILE")] = None,
    protocol_names: Annotated[str, typer.Option("--protocol", help="of P (in order of time), C (cut in time), R (random)")] = "P",
    model_names: Annotated[
        str, typer.Option("--models", help="comma-separated; your own as package.module:Model; all without")
    ] = "",
    ablations: Annotated[bool, typer.Option("--ablations", help="PEPNet without its parts and in other sizes")] = False,
    at_once: Annotated[
        bool, typer.Option("--at-once", help="also every model with own parameters of scenarios that count from the first row")
    ] = False,
    reference_names: Annotated[
        str, typer.Option("--references", help="whom to compare with: a network of each scenario, of each scenario and objective")
    ] = ",".join(zoo.REFERENCES),
    seeds: Annotated[int, typer.Option(min=1, max=20, help="runs of each random model")] = 3,
    lag: Annotated[str, typer.Option(help="when labels are known: after 1000 (rows), or after 30s, 10m, 2h")] = "0",
    limit: Annotated[int | None, typer.Option(min=1000, help="only the lists of the first so many rows")] = None,
    world_seed: Annotated[
        int | None, typer.Option(min=0, help="simulate, simulate7: another world than the reported one, to choose settings on")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, max=100, help="most passes of protocol R, which stops early")] = 5,
    resamples: Annotated[int, typer.Option(min=20, help="resamples of users for p-values")] = 200,
    choose_settings: Annotated[bool, typer.Option("--choose", help="choose rates for --models on the first 20 %")] = False,
    keys: Annotated[str, typer.Option(help="settings that --choose searches, of those it knows")] = ",".join(choice.GRIDS),
    report_file: Annotated[pathlib.Path | None, typer.Option("--report", help="write the figures as JSON")] = None,
    out: Annotated[pathlib.Path | None, typer.Option(help="folder for tables, plots, the page and finished passes")] = None,
    bars_of: Annotated[
        str, typer.Option("--bars", help="run nothing: all bars from reports DATA=FILE,..., those in none of them as not run")
    ] = "",
    resume: Annotated[
        bool, typer.Option("--resume", help="take finished passes from --out, if settings and data are equal")
    ] = False,
) -> None:
    """Every model on one log, by scenario and objective, against each scenario's own network and the baselines."""
    console = Console() if sys.stdout.isatty() else Console(width=200)
    command, made, rows, unmeasured = report.command_line(), list[studies.Study](), list[report.Row](), list[str]()
    if bars_of:
        _collect(console, bars_of, report_file)
        return
    names = quality.listed(model_names)
    wanted = quality.listed(protocol_names)
    references = quality.listed(reference_names)
    if not wanted:
        raise logs.LogError("--protocol: name at least one of P, C, R")
    if not set(references) <= set(zoo.REFERENCES):
        raise logs.LogError(f"--references {reference_names!r}: there are {', '.join(zoo.REFERENCES)}")
    chosen_lag, progress, searched = quality.lag_of(lag), quality.Progress(), choice.grids(keys)
    if resume and out is None:
        raise logs.LogError("--resume needs --out DIR, the folder of the passes that are finished")
    if out is not None:
        pages.begin(out)
    for name in wanted:
        config = configured(data, spec, name)
        entrants = zoo.ablations(config) if ablations else zoo.chosen(config, names)
        entrants += zoo.at_once(entrants) if at_once else []
        log = open_log(config, data, actions, limit, world_seed=world_seed)
        inputs = protocols.masked(config, protocol.prepare(config, log, chosen_lag, progress.stage(f"{name}: features")))
        if choose_settings:
            if config.objectives[0].scenarios:
                raise logs.LogError(
                    "--choose judges by the first objective, which must exist in every scenario; name another first"
                )
            if config.objectives[0].kind != "binary":
                raise logs.LogError("--choose judges by AUC and GAUC, so the first objective must be binary; name another first")
            found = choice.choose(config, choice.plan(name, inputs, epochs), names or [config.model.name], searched)
            console.print("\n".join(["", f"# {name}: chosen on the first 20 %", *quality.written(found)]))
            continue
        cuts = protocols.ML1M_CUTS_MS if data == "ml1m" and limit is None else None
        planned = protocols.plan(name, inputs, config.quality.burn_in, epochs, cuts)
        bench = zoo.Bench(planned, range(seeds), None if out is None else out / "passes", resume, progress)
        made.append(study(config, planned, entrants, bench, resamples, ablations, references))
        rows += studies.rows_of(made[-1], data, limit is None and not world_seed, command)
        unmeasured += [] if {e.name for e in entrants} & set(made[-1].results) else [name]
    if choose_settings:
        return
    rows += [] if ablations else bars.missing(data, rows)
    _show(console, made, rows)
    if report_file is not None:
        report.write(report_file, rows)
        console.print(f"written: {report_file}")
    if out is not None:
        console.print(f"written: {plots.write(out, f'Models on {data}', command, made, tables.verdicts(rows))}")
    if unmeasured:
        console.print(f"no model could be measured under {', '.join(unmeasured)}; above stands why")
        raise typer.Exit(1)


def _collect(console: Console, pairs: str, report_file: pathlib.Path | None) -> None:
    """The table of all bars, and their report."""
    rows = bars.collected(bars.read(quality.listed(pairs)))
    console.print(grids.terminal(tables.verdicts(rows)))
    passed, missed = (sum(r.passed is verdict for r in rows) for verdict in (True, False))
    console.print(f"{passed} pass, {missed} miss, {len(rows) - passed - missed} not run")
    if report_file is not None:
        report.write(report_file, rows)
        report_file.with_suffix(".md").write_text(f"# Bars\n\n{grids.markdown(tables.verdicts(rows))}", encoding="utf-8")
        console.print(f"written: {report_file} and {report_file.with_suffix('.md')}")


def _show(console: Console, made: list[studies.Study], rows: list[report.Row]) -> None:
    for one in made:
        # Gates of a dozen ablations fill a screen; the page has them.
        gates = tables.gates(one) if one.reference == zoo.ALONE else None
        shown = itertools.chain(tables.overall(one), tables.seesaws(one), filter(None, [gates]))
        for grid in shown:
            console.print(grids.terminal(grid))
        for notice in one.notices:
            console.print(f"{one.label}: {notice}")
    judged = tables.verdicts(rows)
    if judged.rows:
        console.print(grids.terminal(judged))
