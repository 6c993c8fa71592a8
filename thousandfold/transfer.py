"""`thousandfold transfer`: what a new objective gains from a model that was trained without it (DUPN, Ni et al. 2018).

A log is cut in time. Before the cut a base model learns the objectives that there are; from the cut on the new one has labels:

* rs, alone: a new model learns the new objective only.
* ra, with all: a new model learns every objective from the beginning of the log, the new one from the cut on.
* rt, on the frozen trunk: the base model's representation stays as it is; a tower and gates for the new objective are learned.
* ft, fine-tuned: the same start, and everything is learned on.

Each is measured prequentially on the new objective, on the same rows after the cut. All run by autograd, so seconds compare.
"""

import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import torch
import typer
from rich.console import Console
from rich.table import Table

from learner import passes, step
from learner.prequential import VARIANTS, Prequential, Quality
from models import base, losses, registry
from models.meta import registry as meta
from state import config as configuration
from state import consistency
from thousandfold import new_objective
from thousandfold.bench import logs, protocol, quality

F32 = npt.NDArray[np.float32]
Mode = Literal["rs", "ra", "rt", "ft"]
MODES: dict[Mode, str] = {"rs": "alone", "ra": "with all", "rt": "frozen trunk", "ft": "fine-tuned"}
FIGURES = ("AUC", "GAUC", "logloss", "calibration", "accuracy", "RMSE")
EARLY = 0.2
"""Share of the rows after the cut that tells how soon a mode is good."""


class Task(NamedTuple):
    """A log that is cut before list `first`, the configuration with all objectives, and which of them is new."""

    config: configuration.Config
    inputs: protocol.Inputs
    new: int
    first: int

    @property
    def old(self) -> list[int]:
        """Objectives that were there before."""
        return [o for o in range(len(self.config.objectives)) if o != self.new]


class Result(NamedTuple):
    """A mode's figures by scenario ("(all)" last) over all rows after the cut and over the first of them, and what it took."""

    mode: Mode
    figures: list[Quality]
    early: list[Quality]
    rows: int
    """Rows that it was trained on."""
    trained: int
    """Dense parameters that it learned."""
    seconds: float


def task(config: configuration.Config, log: logs.Log, new: str, share: float, lag: protocol.Lag) -> Task:
    """Prepare a log whose new objective begins after `share` of its rows.

    Raises:
        LogError: there is no such objective, no other one, or one of the parts has no rows.
    """
    names = [o.name for o in config.objectives]
    if new not in names:
        raise logs.LogError(f'--objective "{new}" is not declared; there are {", ".join(names)}; or name its --action as well')
    if len(names) == 1:
        raise logs.LogError(f'"{new}" is the only objective; a transfer needs another one that was there before')
    inputs = protocol.prepare(config, log, lag)
    first = int(np.searchsorted(inputs.start, share * inputs.rows))
    if not 0 < first < len(inputs.ts):
        raise logs.LogError(f"--share {share}: one side of the cut has no lists; use more of the log or another share")
    return Task(config, inputs, names.index(new), first)


def with_objective(config: configuration.Config, name: str, action: str) -> configuration.Config:
    """The configuration with one more binary objective, made by a kind of action."""
    added = configuration.Objective(name=name, action=action)
    return msgspec.structs.replace(config, objectives=(*config.objectives, added))


def run(task: Task, modes: Sequence[Mode], say: Callable[[str], None] = print) -> list[Result]:
    """Measure the modes; the base model is trained once, where one of them starts from it."""
    start = None
    if {"rt", "ft"} & set(modes):
        began = time.perf_counter()
        start = base_model(task)
        say(f"base model: {int(task.inputs.start[task.first]):,} rows, {time.perf_counter() - began:.0f} s")
    results = []
    for mode in modes:
        results.append(_run(task, mode, start))
        say(f"{mode}, {MODES[mode]}: {results[-1].rows:,} rows, {results[-1].seconds:.0f} s")
    return results


def base_model(task: Task) -> step.Trainer:
    """A model of the old objectives, trained up to the cut."""
    config = only(task.config, task.old)
    trainer = step.Trainer(config, native=False)
    rows = int(task.inputs.start[task.first])
    protocol.run(config, columns(task.inputs, task.old).head(rows), trainer=trainer)
    return trainer


def _run(task: Task, mode: Mode, start: step.Trainer | None) -> Result:
    began, cut = time.perf_counter(), int(task.inputs.start[task.first])
    rows = task.inputs.rows - cut
    if mode == "ra":
        config = _with_gaps(task)
        label = task.inputs.label.copy()
        label[:cut, task.new] = np.nan
        trainer = step.Trainer(config, native=False)
        scores = protocol.run(config, task.inputs._replace(label=label), trainer=trainer)
        part = losses.plan(config.objectives).parts[task.new]
        own = slice(part.at, part.at + part.width)
        adapted, unadapted = scores.adapted[cut:, own], scores.unadapted[cut:, own]
        rows += cut
    else:
        config = only(task.config, [task.new])
        config = quality.override(config, "optimizer.weight_decay", 0.0) if mode == "rt" else config
        trainer = step.Trainer(config, native=False)
        if mode != "rs" and start is not None:
            take_over(trainer, start)
        if mode == "rt":
            trainer.engine = Frozen(trainer.engine, trainer.gradient, shallow(trainer))
        scores = protocol.run(config, tail(columns(task.inputs, [task.new]), task.first), trainer=trainer)
        adapted, unadapted = scores.adapted, scores.unadapted
    seconds = time.perf_counter() - began
    trained = int(trainer.engine.learned.sum()) if isinstance(trainer.engine, Frozen) else len(trainer.dense)
    figures, early = (_measured(task, adapted, unadapted, share) for share in (1.0, EARLY))
    return Result(mode, figures, early, rows, trained, seconds)


class Frozen:
    """An engine whose gradients reach only the dense parameters that are `learned` (P,), and no embedding.

    The running moments of numbers go on, since they describe the input rather than what was learned of it.
    """

    def __init__(self, engine: passes.Engine, gradient: base.Gradient, learned: npt.NDArray[np.bool_]) -> None:
        self.engine, self.gradient, self.learned = engine, gradient, learned

    def run(self, work: passes.Work, train: bool) -> base.Pass:
        """See `passes.Engine`."""
        done = self.engine.run(work, train)
        if train and done.inputs is not None:
            self.gradient.flat.numpy()[~self.learned] = 0
            done = done._replace(inputs=np.zeros_like(done.inputs))
        return done


def heads(config: configuration.Config) -> set[str]:
    """Parameters that objectives own: their shapes depend on how many there are."""
    one, two = (_shapes(msgspec.structs.replace(config, objectives=tuple(_numbered(n)))) for n in range(1, 3))
    return {name for name, shape in one.items() if two[name] != shape}


def _shapes(config: configuration.Config) -> base.Shapes:
    model = registry.build(config)
    return meta.shapes(model, meta.build(config, model))


def _numbered(n: int) -> list[configuration.Objective]:
    return [configuration.Objective(name=f"o{i}", action="any") for i in range(n)]


def take_over(trainer: step.Trainer, start: step.Trainer) -> None:
    """Everything but the heads: table, counts, and the dense parameters that objectives share; optimiser and heads start anew."""
    fresh = {name: array.copy() for name, array in (trainer.adam.arrays() | trainer.starts.arrays()).items()}
    flat, owned, known = trainer.dense.copy(), heads(trainer.settings), views(start.dense, start.shapes)
    for name, view in views(flat, trainer.shapes).items():
        if name not in owned:
            view[:] = known[name]
    trainer.load({**start.arrays(), **fresh, "dense": flat, "dense.trained": flat})


def views(flat: F32, shapes: base.Shapes) -> dict[str, F32]:
    """Dense parameters by name, as views."""
    return {name: view.numpy() for name, view in base.views(torch.from_numpy(flat), shapes).items()}


def shallow(trainer: step.Trainer) -> npt.NDArray[np.bool_]:
    """Which dense parameters a frozen trunk leaves to learn: tower and adaptation, and what the new objective owns."""
    mine = heads(trainer.settings) | set(trainer.model.fast_parameters()) | (trainer.shapes.keys() - trainer.model.shapes)
    return np.concatenate([np.full(int(np.prod(shape)), name in mine) for name, shape in trainer.shapes.items()])


def only(config: configuration.Config, objectives: Sequence[int]) -> configuration.Config:
    """The configuration with some of its objectives; the features keep the kinds of action that they were declared with."""
    kept = tuple(config.objectives[o] for o in objectives)
    return msgspec.structs.replace(config, objectives=kept)


def _with_gaps(task: Task) -> configuration.Config:
    """The configuration under which labels may be missing: the new objective is one of some scenarios, here of all."""
    config = task.config
    new = config.objectives[task.new]
    named = new if new.scenarios else msgspec.structs.replace(new, scenarios=tuple(task.inputs.scenarios.values()))
    objectives = tuple(named if o == task.new else own for o, own in enumerate(config.objectives))
    return msgspec.structs.replace(config, objectives=objectives)


def columns(inputs: protocol.Inputs, objectives: Sequence[int]) -> protocol.Inputs:
    """The same lists with the labels of some objectives."""
    return inputs._replace(label=np.ascontiguousarray(inputs.label[:, list(objectives)]))


def tail(inputs: protocol.Inputs, first: int) -> protocol.Inputs:
    """The lists from `first` on, as if nothing had been known before."""
    low = int(inputs.start[first])
    return inputs._replace(
        request=inputs.request[first:], user=inputs.user[first:], scenario=inputs.scenario[first:], task=inputs.task[first:],
        ts=inputs.ts[first:], start=inputs.start[first:] - low, known=np.maximum(inputs.known[first:] - first, 0),
        item=inputs.item[low:], group=inputs.group[low:], ids=inputs.ids[low:], x=inputs.x[low:], label=inputs.label[low:],
    )  # fmt: skip


def _measured(task: Task, adapted: F32, unadapted: F32, share: float) -> list[Quality]:
    """Figures of the new objective over the first `share` of the rows after the cut."""
    objective = task.config.objectives[task.new]
    d = tail(columns(task.inputs, [task.new]), task.first)
    lists = int(np.searchsorted(d.start, share * d.rows, side="right")) - 1
    rows = int(d.start[lists])
    scenarios = task.config.scenarios
    parts = losses.plan([objective]).parts
    figures = Prequential((objective.name,), scenarios.known, scenarios.max_shown, 100, gauc_rows=max(rows, 1), parts=parts)
    scores = np.full((len(VARIANTS), rows, adapted.shape[1]), np.nan, np.float32)
    scores[0], scores[1] = adapted[:rows], unadapted[:rows]
    label = d.label[:rows]
    weight = np.isfinite(label).astype(np.float32)
    n_items = np.diff(d.start[: lists + 1])
    figures.update(d.scenario[:lists], d.user[:lists], n_items, scores, label, weight, d.scenarios)
    return [q for q in figures.report() if q.variant == "adapted"]


def table(task: Task, results: Sequence[Result]) -> Table:
    """One column per mode; the figures are those of the objective's kind, by scenario the first of them."""
    rows, old = results[0].figures[-1].rows, ", ".join(task.config.objectives[o].name for o in task.old)
    out = Table(title=f"{task.config.objectives[task.new].name}, {rows:,} rows after the cut; before it: {old}")
    out.add_column("")
    for r in results:
        out.add_column(f"{r.mode} {MODES[r.mode]}", justify="right")
    shown = [f for f in FIGURES if any(not np.isnan(_value(q, f)) for r in results for q in r.figures)] or ["AUC"]
    for figure in shown:
        out.add_row(figure, *(_number(_value(r.figures[-1], figure)) for r in results))
    out.add_row(f"{shown[0]}, first {EARLY:.0%}", *(_number(_value(r.early[-1], shown[0])) for r in results))
    for k, q in enumerate(results[0].figures[:-1]):
        if q.rows:
            out.add_row(f"{shown[0]} in {q.scenario}", *(_number(_value(r.figures[k], shown[0])) for r in results))
    out.add_row("rows trained on", *(f"{r.rows:,}" for r in results))
    out.add_row("parameters learned", *(f"{r.trained:,}" for r in results))
    out.add_row("seconds", *(f"{r.seconds:.0f}" for r in results))
    return out


def _number(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.4f}"


def _value(q: Quality, column: str) -> float:
    return float(getattr(q, column.lower()))


app = typer.Typer()


@app.command()
def transfer(
    objective: Annotated[str, typer.Option(help="the new objective: one of the spec's, or a new name with --action")],
    mode: Annotated[str, typer.Option(help="rs (alone), ra (with all), rt (frozen trunk), ft (fine-tuned), or all")] = "all",
    data: Annotated[str, typer.Option(help="ml1m, simulate, or a Parquet file of shown rows")] = "ml1m",
    spec: Annotated[pathlib.Path | None, typer.Option(help="the configuration file; ml1m has its own")] = None,
    action: Annotated[
        str | None, typer.Option(help="make a binary objective of this kind of action (ml1m: love, rating 5)")
    ] = None,
    actions: Annotated[pathlib.Path | None, typer.Option(help="a Parquet file of actions, for --data FILE")] = None,
    share: Annotated[float, typer.Option(min=0.01, max=0.99, help="share of the rows before the new objective begins")] = 0.5,
    lag: Annotated[str, typer.Option(help="when labels are known: after 1000 (rows), or after 30s, 10m, 2h")] = "0",
    limit: Annotated[int | None, typer.Option(min=1000, help="only the lists of the first so many rows")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="seed of the parameters; default: learner.seed")] = None,
    source: Annotated[
        pathlib.Path | None, typer.Option("--from", help="measure nothing: folder with the snapshots of a deployment without it")
    ] = None,
    before: Annotated[
        pathlib.Path | None,
        typer.Option("--config", help="with --from: that deployment's configuration, if not --spec without it"),
    ] = None,
    into: Annotated[
        pathlib.Path | None, typer.Option(help="with --from: folder for the snapshot with it, without any so far")
    ] = None,
) -> None:
    """A new objective alone, with all, on the frozen trunk and fine-tuned, in one table; or put it into a snapshot (--from)."""
    if source is not None or into is not None or before is not None:
        print(new_objective.into_a_deployment(objective, spec, action, source, before, into))
        return
    if mode not in {*MODES, "all"}:
        raise logs.LogError(f"--mode {mode!r}: there are {', '.join(MODES)} and all")
    config = quality.configured(data, spec)
    if action is not None:
        config = with_objective(config, objective, action)
    for key, problem in consistency.contradictions(config):
        raise configuration.ConfigError(f"{key}: {problem}")
    if seed is not None:
        config = quality.override(config, "learner.seed", seed)
    log = quality.open_log(config, data, actions, limit, what="")
    prepared = task(config, log, objective, share, quality.lag_of(lag))
    chosen: list[Mode] = list(MODES) if mode == "all" else [m for m in MODES if m == mode]
    console = Console()
    console.print(table(prepared, run(prepared, chosen, console.print)))
