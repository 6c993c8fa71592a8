"""Support sets of features against those of meta inputs: what adaptation gains, what a request takes, what a row weighs (T7).

One learner trains in order of time and publishes every so many rows, for both kinds the same snapshots. The lists until the next
one are scored by the plain tower, adapted on the features that the streams keep (as of each list), and adapted on the meta inputs
that the learner has left (as of its last step, by older trunks; those that moved too far are ignored).
"""

import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import typer
from rich.console import Console

from learner import episodes, meta_inputs
from learner.step import Trainer
from models import base, scorer
from serving import scoring
from state import columns, meta_supports, supports
from state import config as configuration
from state.config import Config
from thousandfold.bench import figures, protocol, quality, report

F32 = npt.NDArray[np.float32]
KINDS = ("plain", "features", "meta_inputs")
CANDIDATES, ROUNDS, TOGETHER = 200, 200, 64
CLOSE, SMALLER = -0.001, 1.0
"""Targets: AUC of meta inputs over features, and bytes of their rows over those of features."""


class Quality(NamedTuple):
    """Predictions (R,) of the first objective by kind of support, NaN before the first snapshot, and rows used and ignored."""

    said: dict[str, F32]
    used: dict[str, int]
    stale: int
    bytes: dict[str, float]
    """Of a task's set, the mean over tasks."""
    trunk: meta_supports.Trunk
    last: tuple[scorer.Scorer, scorer.Scorer]
    """The last snapshot, by native code and by torch."""
    most: tuple[base.Support, base.Known]
    """The largest support that a list had, of each kind."""


def lists_of(inputs: protocol.Inputs, first: int, last: int) -> episodes.Lists:
    """Lists [first, last) as the learner has them, without support."""
    low, high, n = int(inputs.start[first]), int(inputs.start[last]), last - first
    found: columns.Columns = {
        "task": inputs.task[first:last], "ts": inputs.ts[first:last], "scenario": inputs.scenario[first:last],
        "request": np.arange(first + 1, last + 1, dtype=np.uint64), "version": np.zeros(n, np.int32),
        "n_items": np.diff(inputs.start[first : last + 1]).astype(np.int32),
        "ids": inputs.ids[low:high], "x": inputs.x[low:high], "label": inputs.label[low:high],
    }  # fmt: skip
    return episodes.Lists(found, np.zeros(n, np.int64), np.arange(n), {})


def measure(
    config: Config, inputs: protocol.Inputs, every: int, tell: Callable[[int, int], None] = lambda _a, _b: None
) -> Quality:
    """Go through the log, with a snapshot every `every` rows."""
    trainer, known, store = Trainer(config), protocol.Supports(config, inputs), meta_inputs.MemoryStore()
    keeper = meta_inputs.Keeper(config, trainer, store, 1)
    said = {kind: np.full(inputs.rows, np.nan, np.float32) for kind in KINDS}
    used, stale, model = dict.fromkeys(KINDS, 0), 0, scorer.Scorer(config, trainer.arrays())
    most: tuple[base.Support | None, base.Known | None] = (None, None)
    for first, last in episodes.cut(np.diff(inputs.start), every):
        n_support, s = known.of(first, last)
        ends = np.cumsum(n_support)
        features = [
            base.Support(s["ids"][e - n : e], s["x"][e - n : e], s["label"][e - n : e], s["ts"][e - n : e])
            for n, e in zip(n_support.tolist(), ends.tolist(), strict=True)
        ]
        stored, ignored = _stored(config, inputs, first, last, store, model)
        if first:
            stale += ignored
            for kind, chosen in (("features", features), ("meta_inputs", stored)):
                used[kind] += _score(model, inputs, first, last, chosen, said["plain"], said[kind])
            most = max([most[0], *features], key=_rows), max([most[1], *stored], key=_rows)
        for a, z in episodes.cut(np.diff(inputs.start[first : last + 1]), config.learner.rows_per_step):
            trainer.step(_batch(inputs, first + a, first + z, features[a:z]), int(inputs.ts[first + z - 1]))
        keeper.put(lists_of(inputs, first, last))
        keeper.measure(last)
        model = scorer.Scorer(config, trainer.arrays() | keeper.serving())
        tell(int(inputs.start[last]), inputs.rows)
    layout = supports.layout(config)
    held = {task: supports.unpack(meta_supports.layout(config, model.shape), value) for task, value in store.sets.items()}
    rows = statistics.fmean(len(found) for found in held.values() if found is not None)
    row = {"features": layout.dtype.itemsize, "meta_inputs": meta_supports.layout(config, model.shape).dtype.itemsize}
    sizes = {kind: 8 * supports.HEAD_WORDS + rows * size for kind, size in row.items()}
    if most[0] is None or most[1] is None:
        raise configuration.ConfigError("the log is too short for any support; raise --limit")
    slow = scorer.Scorer(config, trainer.arrays() | keeper.serving(), native=False)
    return Quality(said, used, stale, sizes, keeper.trunk, (model, slow), (most[0], most[1]))


def _rows(support: base.Support | base.Known | None) -> int:
    return 0 if support is None else len(support.label)


def _stored(
    config: Config, inputs: protocol.Inputs, first: int, last: int, store: meta_inputs.MemoryStore, model: scorer.Scorer
) -> tuple[list[base.Known | None], int]:
    """What serving would use of the sets that the learner has left, for each list, and the rows that it would call stale."""
    layout, found, stale = meta_supports.layout(config, model.shape), list[base.Known | None](), 0
    for task, ts in zip(inputs.task[first:last].tolist(), inputs.ts[first:last].tolist(), strict=True):
        packed = store.sets.get(task)
        known, ignored = None, scoring.Ignored()
        if packed is not None:
            known, ignored = scoring.known_rows(
                layout, packed, ts, round(1000 * config.support.max_age_s), model, config.support.max_drift
            )
        found.append(known)
        stale += ignored.stale
    return found, stale


def _score(
    model: scorer.Scorer, inputs: protocol.Inputs, first: int, last: int, chosen: list[base.Support] | list[base.Known | None],
    plain: F32, out: F32,
) -> int:  # fmt: skip
    """Score lists [first, last), `TOGETHER` at once; returns the support rows used."""
    used = 0
    for begin in range(first, last, TOGETHER):
        end = min(begin + TOGETHER, last)
        cuts = [slice(int(inputs.start[i]), int(inputs.start[i + 1])) for i in range(begin, end)]
        tasks = [
            scorer.Task(inputs.ids[c], inputs.x[c], int(inputs.scenario[i]), chosen[i - first])
            for i, c in zip(range(begin, end), cuts, strict=True)
        ]
        for c, scored in zip(cuts, model.merged(tasks), strict=True):
            plain[c], out[c] = scored.plain[:, 0], scored.adapted[:, 0]
            used += scored.adapted_on
    return used


def _batch(inputs: protocol.Inputs, first: int, last: int, support: list[base.Support]) -> base.Batch:
    low, high = int(inputs.start[first]), int(inputs.start[last])
    label = inputs.label[low:high]
    parts = [np.concatenate(part) for part in zip(*support, strict=True)]
    return base.Batch(
        inputs.ids[low:high], inputs.x[low:high], label, np.isfinite(label).astype(np.float32), inputs.scenario[first:last],
        np.diff(inputs.start[first : last + 1]), np.array([len(s.label) for s in support]), *parts,
    )  # fmt: skip


def latency(found: Quality, inputs: protocol.Inputs, rounds: int) -> dict[str, float]:
    """Milliseconds of scoring 200 candidates by kind of support, the median of rounds that take turns.

    Each is scored once before it is timed, or it would pay for the caches that another left.
    """
    (model, slow), (features, known) = found.last, found.most
    ids, x = inputs.ids[-CANDIDATES:], inputs.x[-CANDIDATES:]
    ways: dict[str, tuple[scorer.Scorer, base.Support | base.Known | None]] = {
        "plain": (model, None), "features": (model, features), "plain_torch": (slow, None), "features_torch": (slow, features),
        "meta_inputs": (model, known), "meta_inputs_torch": (slow, known),
    }  # fmt: skip
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, (who, support) in ways.items():
            who.score(ids, x, int(inputs.scenario[-1]), support)
            began = time.perf_counter()
            who.score(ids, x, int(inputs.scenario[-1]), support)
            times[way].append(1000 * (time.perf_counter() - began))
    return {way: statistics.median(taken) for way, taken in times.items()}


def rows_of(config: Config, inputs: protocol.Inputs, found: Quality, ms: dict[str, float]) -> list[report.Row]:
    """The figures: AUC and logloss by kind, milliseconds, bytes, what was ignored."""
    counted = np.isfinite(found.said["plain"]) & np.isfinite(inputs.label[:, 0])
    auc = {k: figures.auc(inputs.label[counted, 0], said[counted]) for k, said in found.said.items()}
    rows = [report.row(f"support/{kind}/auc", value, "AUC") for kind, value in auc.items()]
    rows.append(
        report.row("support/auc_difference", auc["meta_inputs"] - auc["features"], "meta inputs less features", target=CLOSE)
    )
    rows += [report.row(f"support/{way}/ms", value, "ms", better="lower") for way, value in ms.items()]
    rows += [report.row(f"support/{kind}/bytes", value, "bytes a task", better="lower") for kind, value in found.bytes.items()]
    ratio = found.bytes["meta_inputs"] / found.bytes["features"]
    rows.append(report.row("support/bytes_ratio", ratio, "meta inputs / features", better="lower", target=SMALLER))
    rows += [report.row(f"support/{kind}/rows_used", found.used[kind], "rows") for kind in KINDS[1:]]
    share = found.stale / max(found.stale + found.used["meta_inputs"], 1)
    rows.append(report.row("support/stale", share, "share of rows", better="lower"))
    return [
        *rows,
        report.row("support/moved", found.trunk.moved, f"odometer; limit {config.support.max_drift:g}", better="lower"),
    ]


app = typer.Typer()


@app.command("support")
def command(
    data: Annotated[str, typer.Option(help="ml1m, simulate, or a Parquet file of shown rows")] = "ml1m",
    spec: Annotated[pathlib.Path | None, typer.Option(help="the configuration with the feature spec; ml1m has its own")] = None,
    actions: Annotated[pathlib.Path | None, typer.Option(help="a Parquet file of actions, for --data FILE")] = None,
    limit: Annotated[int, typer.Option(min=2000, help="rows of the log")] = 60_000,
    every: Annotated[int, typer.Option(min=100, help="rows between two snapshots")] = 2_000,
    drift: Annotated[float | None, typer.Option(help="support.max_drift, if not the configuration's")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="timed rounds")] = ROUNDS,
    report_file: Annotated[pathlib.Path | None, typer.Option("--report", help="write the rows to this JSON file")] = None,
) -> None:
    """Support sets of features against those of meta inputs: quality, latency and bytes."""
    console = Console()
    config = quality.configured(data, spec)
    if drift is not None:
        config = msgspec.structs.replace(config, support=msgspec.structs.replace(config.support, max_drift=drift))
    log = quality.open_log(config, data, actions, limit, say=console.print, what="bench support")
    inputs = protocol.prepare(config, log, protocol.Lag())
    found = measure(config, inputs, every)
    rows = rows_of(config, inputs, found, latency(found, inputs, rounds))
    console.print(report.table(rows, "support sets: features against meta inputs"))
    if report_file:
        report.write(report_file, rows)
