"""What one merged model costs against a model for every scenario: parameters, rows, distinct keys, rows per second, memory (C5).

The same lists are trained on twice: all of them in order of time by the merged model, and each scenario's by a model of its own
with minibatches of as many rows, without adaptation. What scenarios have in common is held, and fetched, once by the merged one:
a user who is seen in three scenarios is one row instead of three, and one key of a minibatch instead of one in each.
"""

import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import typer
from rich.console import Console

from learner import episodes
from learner.step import Trainer
from models import base
from state.config import Config
from thousandfold.bench import figures, protocol, quality, report
from thousandfold.bench.models import protocols

SAVED = 0.24
"""What the talk saved on training two scenarios' models on CPUs until they had caught up."""


class Step(NamedTuple):
    """One minibatch and the event time it is trained at."""

    batch: base.Batch
    now_ms: int


class Cost(NamedTuple):
    """Of one model over its part of the log; costs of several models are added up."""

    parameters: int
    """Dense ones."""
    embedding_rows: int
    keys: float
    """Distinct rows of the embedding table that a minibatch fetches, the mean."""
    seconds: float
    rows: int
    state_bytes: int
    """Everything that a snapshot holds."""


class Said(NamedTuple):
    """Scores (n,) of the first objective before each row was learned from, with its labels and scenarios: the first pass."""

    score: npt.NDArray[np.float32]
    label: npt.NDArray[np.float32]
    scenario: npt.NDArray[np.uint64]


def named(config: Config, model: str, scenarios: int) -> Config:
    """The configuration with another model, room for so many scenarios and no adaptation; a single one owns nothing more."""
    slots = msgspec.structs.replace(config.scenarios, slots=scenarios)
    own = config.model.own_towers and scenarios > 1
    network = msgspec.structs.replace(config.model, name=model, own_towers=own)
    off = msgspec.structs.replace(config.meta, mode="off", scenarios={})
    return msgspec.structs.replace(config, model=network, meta=off, scenarios=slots)


def minibatches(config: Config, inputs: protocol.Inputs) -> list[Step]:
    """Minibatches of whole lists in order of time, without support."""
    n_items, found = np.diff(inputs.start), []
    for first, last in episodes.cut(n_items, config.learner.rows_per_step):
        low, high = int(inputs.start[first]), int(inputs.start[last])
        ids, x, label = inputs.ids[low:high], inputs.x[low:high], inputs.label[low:high]
        none = np.zeros(last - first, np.int64)
        batch = base.Batch(
            ids, x, label, np.ones_like(label), inputs.scenario[first:last], n_items[first:last], none,
            ids[:0], x[:0], label[:0],
        )  # fmt: skip
        found.append(Step(batch, int(inputs.ts[last - 1])))
    return found


def cost(config: Config, made: Sequence[Step], rounds: int) -> tuple[Cost, Said]:
    """Train on all steps, `rounds` times after a first pass that fills the table and is not timed; the fastest pass counts."""
    trainer, keys, seconds, scores = Trainer(config), [], [], []
    for step in made:
        scores.append(trainer.step(*step).unadapted[:, 0])
        found = trainer.find(step.batch.ids)
        keys.append(len(np.unique(found[found >= 0])))
    for _ in range(rounds):
        began = time.perf_counter()
        for step in made:
            trainer.step(*step)
        seconds.append(time.perf_counter() - began)
    size = sum(array.nbytes for array in trainer.arrays().values())
    rows = sum(len(step.batch.ids) for step in made)
    said = Said(
        np.concatenate(scores),
        np.concatenate([step.batch.label[:, 0] for step in made]),
        np.concatenate([np.repeat(step.batch.scenario, step.batch.n_items) for step in made]),
    )
    return Cost(len(trainer.dense), trainer.table.map.admitted, float(np.mean(keys)), min(seconds), rows, size), said


def total(costs: Sequence[Cost]) -> Cost:
    """The sum of several models."""
    return Cost(*(sum(part) for part in zip(*costs, strict=True)))


def measure(
    config: Config, single: str, merged: str, inputs: protocol.Inputs, rounds: int
) -> tuple[Cost, Cost, dict[str, tuple[float, float]]]:
    """The cost of the merged model, the sum of those of single ones, and the AUC of both by scenario."""
    whole = protocols.Plan("P", inputs, np.ones(inputs.rows, bool), len(inputs.ts), len(inputs.ts))
    scenarios = np.unique(inputs.scenario).tolist()
    apart = (protocols.of_scenario(whole, s)[0].inputs for s in scenarios)
    alone = [cost(named(config, single, 1), minibatches(config, part), rounds) for part in apart]
    together, said = cost(named(config, merged, len(scenarios)), minibatches(config, inputs), rounds)
    found = {}
    for scenario, (_, own) in zip(scenarios, alone, strict=True):
        mine = said.scenario == scenario
        found[inputs.scenarios[scenario]] = (figures.auc(said.label[mine], said.score[mine]), figures.auc(own.label, own.score))
    return together, total([c for c, _ in alone]), found


def rows_of(merged: Cost, alone: Cost, auc: Mapping[str, tuple[float, float]]) -> list[report.Row]:
    """The figures of both, the merged one's share of the others' sum, and by scenario what that does to the AUC."""
    figures = [("parameters", "numbers"), ("embedding_rows", "rows"), ("keys", "keys a minibatch"), ("state_bytes", "bytes")]
    found = []
    for who, c in (("merged", merged), ("single", alone)):
        for name, unit in figures:
            found.append(report.row(f"merge/{who}/{name}", getattr(c, name), unit, better="lower"))
        found.append(report.row(f"merge/{who}/rate", c.rows / c.seconds, "rows/s"))
    for name, _ in figures:
        found.append(
            report.row(f"merge/share/{name}", getattr(merged, name) / getattr(alone, name), "merged / sum", better="lower")
        )
    for scenario, (together, apart) in auc.items():
        found += [
            report.row(f"merge/merged/auc/{scenario}", together, "AUC, one pass"),
            report.row(f"merge/single/auc/{scenario}", apart, "AUC, one pass"),
        ]
    seconds = merged.seconds / alone.seconds
    return [*found, report.row("merge/share/seconds", seconds, "merged / sum", better="lower", target=1 - SAVED)]


app = typer.Typer()


@app.command("merge")
def command(
    data: Annotated[str, typer.Option(help="ml1m, simulate, or a Parquet file of shown rows")] = "ml1m",
    spec: Annotated[pathlib.Path | None, typer.Option(help="the configuration with the feature spec; ml1m has its own")] = None,
    actions: Annotated[pathlib.Path | None, typer.Option(help="a Parquet file of actions, for --data FILE")] = None,
    limit: Annotated[int, typer.Option(min=2000, help="rows of the log")] = 100_000,
    rounds: Annotated[int, typer.Option(min=1, help="timed passes, the fastest counts")] = 3,
    single: Annotated[str, typer.Option(help="model of each scenario alone")] = "shared_bottom",
    merged: Annotated[str, typer.Option(help="model of all scenarios")] = "trs",
    report_file: Annotated[pathlib.Path | None, typer.Option("--report", help="write the rows to this JSON file")] = None,
) -> None:
    """What one merged model costs against a model for every scenario."""
    console = Console()
    config = quality.configured(data, spec)
    log = quality.open_log(config, data, actions, limit, say=console.print, what="bench merge")
    inputs = protocol.prepare(config, log, protocol.Lag())
    rows = rows_of(*measure(config, single, merged, inputs, rounds))
    console.print(report.table(rows, "one merged model against the sum of single ones"))
    if report_file:
        report.write(report_file, rows)
