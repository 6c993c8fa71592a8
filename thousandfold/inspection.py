"""`thousandfold inspect`: what a model attends to, what its gates let through, and what the split of its work saves."""

import pathlib
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from learner import step
from models import base, dupn, registry, scorer
from state import config as configuration
from state import disk_snapshots, ids, snapshots, spec
from state.config import Config, Refused
from thousandfold import specs
from thousandfold.bench import pages, protocol, quality
from thousandfold.bench.models import gates as inspected

F32 = npt.NDArray[np.float32]
EXAMPLE = "ml1m_dupn"
ROWS = 20_000
"""Newest rows of the log that are looked at."""


class NothingToInspect(Refused, ValueError):
    """The model or the log has nothing of the kind; the message says what to use."""


class Weight(NamedTuple):
    """What actions of one value weigh: how many there are, their share of all attention, and how often the mean of the actions
    that they compete with (1: what counting all alike would give).
    """

    actions: int
    share: float
    times_mean: float


class Cost(NamedTuple):
    """Multiply-adds of the matrix products of one request, and the greatest difference of its probabilities."""

    split: int
    unsplit: int
    difference: float


def weights(attention: F32, values: npt.NDArray[np.uint64]) -> dict[int, Weight]:
    """By value (an id) what the actions weigh: attention (n, length) of rows whose actions have `values` (n, length).

    Rows without actions, and actions whose value is unknown (PAD), are left out of the values but not of the competition.
    """
    acted = attention > 0
    relative = attention * acted.sum(1, keepdims=True)
    out = {}
    for value in np.unique(values[acted & (values != ids.PAD)]).tolist():
        mine = acted & (values == value)
        share = float(attention[mine].sum(dtype=np.float64) / attention.sum(dtype=np.float64))
        out[value] = Weight(int(mine.sum()), share, float(relative[mine].mean(dtype=np.float64)))
    return out


def attention_of(model: scorer.Scorer, hashes: npt.NDArray[np.uint64], x: F32) -> F32:
    """What each of the last actions weighs in rows of ids (n, F) and raw numbers (n, D): (n, length), newest first.

    Raises:
        KeyError: the model has no attention over actions.
    """
    return model.inspect(hashes, x)["attention"]


def cost(config: Config, candidates: int, seed: int = 0) -> Cost:
    """Count one request of a user with a full history, with the user's side computed once and for every candidate.

    Raises:
        NothingToInspect: the model computes everything for every candidate.
    """
    model, generator = registry.build(config), torch.Generator().manual_seed(seed)
    if not isinstance(model, dupn.DUPN):
        raise NothingToInspect(f'model "{config.model.name}" is not split; use --spec with model.name = "dupn"')
    geometry = model.geometry
    x = torch.randn(candidates, geometry.row, generator=generator)
    x[:, geometry.dense : x.shape[1] - len(geometry.categories)] = x[:1, geometry.dense : x.shape[1] - len(geometry.categories)]
    marks = geometry.dense + geometry.places * geometry.width
    x[:, marks : marks + geometry.places] = 1
    x[:, model.of_user] = x[:1, model.of_user]
    inputs = base.Inputs(x, torch.zeros(candidates, dtype=torch.int64), torch.zeros(candidates))
    parameters, found = base.views(model.initial(seed), model.shapes), []
    # Compiled layers are of float32 only: in float64 every product is torch's, which counts it.
    counted = (
        {name: view.double() for name, view in parameters.items()},
        base.Inputs(x.double(), inputs.slot, inputs.earned.double()),
    )
    for trunk in (model.trunk, model.unsplit):
        with torch.inference_mode():
            scores = torch.sigmoid(model.tower(parameters, trunk(parameters, inputs)))
            with FlopCounterMode(display=False) as counter:
                model.tower(counted[0], trunk(*counted))
        found.append((scores, counter.get_total_flops() // 2))
    (split, less), (unsplit, more) = found
    return Cost(less, more, float((split - unsplit).abs().max()))


def by_kind_and_age(config: Config, found: F32, hashes: npt.NDArray[np.uint64]) -> Iterator[tuple[str, dict[str, Weight]]]:
    """What actions weigh by kind and by age, as far as the spec declares them, each value under its name."""
    kinds = {ids.of(kind): kind for kind in config.action_kinds}
    ages = {ids.of(k): _age(k) for k in range(spec.AGE_BUCKETS)}
    named: tuple[tuple[str, Mapping[int, str]], ...] = (("kind", kinds), ("age", ages))
    columns = {c.name: c for c in spec.id_columns(config.features)}
    for what, names in named:
        for category in (c for c in config.features.categories if spec.behaviour(c) == what):
            at = columns[category.name]
            by_value = weights(found, hashes[:, at.start : at.start + at.width])
            yield what, {name: by_value[value] for value, name in names.items() if value in by_value}


def table(what: str, weighed: Mapping[str, Weight], rows: int) -> Table:
    """One table of `by_kind_and_age`."""
    shown = Table(title=f"attention by {what} of the action ({rows:,} rows)")
    for head in (what, "actions", "share", "times the mean"):
        shown.add_column(head, justify="left" if head == what else "right")
    for name, w in weighed.items():
        shown.add_row(name, f"{w.actions:,}", f"{w.share:.1%}", f"{w.times_mean:.3f}")
    return shown


def picture(weighed: Mapping[str, Mapping[str, Weight]]) -> bytes:
    """A PNG: a panel for kinds and one for ages, a bar for how often the mean of its competition each value weighs."""
    plt = pages.pyplot()
    figure, axes = plt.subplots(1, len(weighed), figsize=(5 * len(weighed), 3.5), squeeze=False)
    for axis, (what, found) in zip(axes[0], weighed.items(), strict=True):
        axis.barh(list(found), [w.times_mean for w in found.values()])
        axis.axvline(1.0, color="black", linewidth=0.8)
        axis.invert_yaxis()
        axis.set_title(f"attention by {what}, times the mean", fontsize=9)
    figure.tight_layout()
    return pages.png(figure)


def _age(bucket: int) -> str:
    """What a bucket of "recent.age" holds, in words."""
    low = (1 << bucket) - 1
    for size, unit in ((86_400, "days"), (3600, "h"), (60, "min")):
        if low >= size:
            return f"from {low / size:.3g} {unit}"
    return f"from {low} s"


def _says(config: Config) -> set[str]:
    """What a model tells of itself (`base.Model.inspect`), by name: known before anything is read or learned."""
    model = registry.build(config)
    nobody = base.Inputs(torch.zeros(1, base.geometry(config).row), torch.zeros(1, dtype=torch.int64), torch.zeros(1))
    with torch.inference_mode():
        return set(model.inspect(base.views(model.initial(0), model.shapes), nobody))


def _drawable(plot: pathlib.Path | None) -> None:
    """Refuse a picture that could not be drawn, before anything is read or learned."""
    if plot is not None:
        pages.pyplot()
        if not plot.absolute().parent.is_dir():
            raise NothingToInspect(f"--plot {plot}: no such folder; make it first")


def _learned(config: Config, inputs: protocol.Inputs, snapshot: pathlib.Path | None) -> scorer.Scorer:
    """The model of a snapshot, else one that learns the log first."""
    if snapshot is not None:
        arrays = _newest(snapshot)
    else:
        trainer = step.Trainer(config)
        protocol.run(config, inputs, trainer=trainer)
        arrays = {name: array for name, array in trainer.arrays().items() if name in trainer.serving_names}
    try:
        return scorer.Scorer(config, arrays)
    except ValueError as error:
        raise NothingToInspect(f"--snapshot {snapshot}: {error}") from None


def _newest(directory: pathlib.Path) -> dict[str, npt.NDArray[Any]]:
    manifest = disk_snapshots.newest_intact(directory, [snapshots.SERVING])
    if manifest is None:
        raise NothingToInspect(f"--snapshot {directory}: no intact snapshot; name the folder that snapshot.directory says")
    return disk_snapshots.read(directory, manifest, snapshots.SERVING)


app = typer.Typer(
    help="See what a model attends to, what its gates let through, and what its split of the work saves.", no_args_is_help=True
)


Data = Annotated[str, typer.Option(help="ml1m, simulate, or a Parquet file of shown rows")]
Actions = Annotated[pathlib.Path | None, typer.Option(help="a Parquet file of actions, for --data FILE")]
Snapshot = Annotated[
    pathlib.Path | None, typer.Option(help="folder of snapshots; without it the log is learned first, in order of time")
]
Limit = Annotated[int | None, typer.Option(min=100, help="only the lists of the first so many rows")]
Plot = Annotated[pathlib.Path | None, typer.Option(help="draw it into this PNG file")]


@app.command()
def attention(
    data: Data = "ml1m",
    spec_file: Annotated[
        pathlib.Path | None, typer.Option("--spec", help="the configuration; without it the worked example of DUPN")
    ] = None,
    actions: Actions = None,
    snapshot: Snapshot = None,
    limit: Limit = None,
    rows: Annotated[int, typer.Option(min=1, help="newest rows of the log that are looked at")] = ROWS,
    plot: Plot = None,
) -> None:
    """Which of a user's last actions count: attention by kind and by age, over the newest rows of a log."""
    config = configuration.load(spec_file or specs.path(EXAMPLE))
    if "attention" not in _says(config):
        raise NothingToInspect(f'model "{config.model.name}" does not weigh actions; use --spec with model.name = "dupn"')
    _drawable(plot)
    inputs = protocol.prepare(config, quality.open_log(config, data, actions, limit), protocol.Lag())
    hashes = inputs.ids[-rows:]
    found = attention_of(_learned(config, inputs, snapshot), hashes, inputs.x[-rows:])
    weighed = dict(by_kind_and_age(config, found, hashes))
    for what, values in weighed.items():
        Console().print(table(what, values, len(found)))
    if plot is not None:
        plot.write_bytes(picture(weighed))


@app.command()
def gates(
    data: Data = "ml1m",
    spec_file: Annotated[
        pathlib.Path | None, typer.Option("--spec", help="the configuration; without it that of MovieLens-1M")
    ] = None,
    actions: Actions = None,
    snapshot: Snapshot = None,
    limit: Limit = None,
    plot: Plot = None,
) -> None:
    """How much each scenario takes of what is shared and of what is its own: the mean of every gate over its newest rows."""
    config = configuration.load(spec_file or specs.path("ml1m"))
    if not _says(config):
        raise NothingToInspect(f'model "{config.model.name}" has no gates; docs/models.md says under `inspect` which models have')
    _drawable(plot)
    inputs = protocol.prepare(config, quality.open_log(config, data, actions, limit), protocol.Lag())
    found = inspected.values(_learned(config, inputs, snapshot).inspect, inputs)
    scenarios = [inputs.scenarios[code] for code in np.unique(inputs.scenario).tolist()]
    shown = Table(
        title=f"{config.model.name}: gates over the newest rows of a scenario, of more than {inspected.FEW} mean and spread"
    )
    for head in ("gate", *scenarios):
        shown.add_column(head, justify="left" if head == "gate" else "right")
    for gate, values in found.items():
        shown.add_row(gate, *map(inspected.shown, values))
    Console().print(shown)
    if plot is not None:
        plot.write_bytes(inspected.picture(config.model.name, found, scenarios))


@app.command()
def split(
    spec_file: Annotated[
        pathlib.Path | None, typer.Option("--spec", help="the configuration; without it the worked example of DUPN")
    ] = None,
    candidates: Annotated[list[int] | None, typer.Option(min=1, help="candidates of one request; may be repeated")] = None,
) -> None:
    """Multiply-adds of one request, the user's side computed once, beside those of every candidate by itself."""
    config = configuration.load(spec_file or specs.path(EXAMPLE))
    shown = Table(title=f"{config.model.name}: multiply-adds of the matrix products of one request")
    for head in ("candidates", "split", "unsplit", "saved", "greatest difference of a score"):
        shown.add_column(head, justify="right")
    for n in candidates or (1, 10, 100, 1000):
        found = cost(config, n)
        saved = 1 - found.split / found.unsplit
        shown.add_row(f"{n:,}", f"{found.split:,}", f"{found.unsplit:,}", f"{saved:.1%}", f"{found.difference:.1e}")
    Console().print(shown)
