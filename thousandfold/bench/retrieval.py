"""`thousandfold bench retrieval`: find what a user acts on next among all items met so far, in order of time, against popularity.

Every batch of actions is searched for before it is learned from, each action with what its user did strictly before it. Items
that the user was shown before are left out for everybody; one that nobody was shown before the batch cannot be found.
"""

import math
import pathlib
import sys
import time
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import typer
from rich.console import Console
from rich.table import Table

from learner import retrieval as learner
from state import config as configuration
from thousandfold import specs
from thousandfold.bench import logs, protocol, quality, report

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
RECENT = 10_000
"""Actions that the recent popularity counts."""
NEVER = 10**9
HISTORY = {"0": (0, 1), "1-4": (1, 5), "5-16": (5, 17), "17+": (17, NEVER)}
FIGURES = ("recall@10", "recall@50", "ndcg@10")
WIDTH = 130


class Options(NamedTuple):
    """Actions of a batch, rows of the queue that compete and that it holds, negatives for each positive of a support set."""

    batch: int = 64
    queue: int = 512
    held: int = 4096
    negatives: int = 2


class Log(NamedTuple):
    """The rows of a log (R,) by user and item number, and the rows that were acted on (P,), in order of time."""

    inputs: protocol.Inputs
    user: I64
    item: I64
    ts: I64
    acted: I64


class Ranks(NamedTuple):
    """By method the rank (P,) of what was acted on, from 0, of those that were measured, and how many actions the user had."""

    of: dict[str, I64]
    history: I64
    seconds: float


def log_of(inputs: protocol.Inputs) -> Log:
    """What retrieval needs of a log; the first objective says what was acted on."""
    n_items = np.diff(inputs.start)
    user, item = (
        np.unique(part, return_inverse=True)[1].astype(np.int64) for part in (np.repeat(inputs.user, n_items), inputs.item)
    )
    return Log(inputs, user, item, np.repeat(inputs.ts, n_items), np.flatnonzero(inputs.label[:, 0] > 0))


class Shelf(NamedTuple):
    """What is known of the items when a batch begins: a row of each (-1: never shown), its actions, and its recent ones."""

    row: I64
    total: F64
    recent: F64


class Catalogue:
    """What is known of items and users while a log is read in order."""

    def __init__(self, log: Log) -> None:
        self._log, self._read, items = log, 0, int(log.item.max()) + 1
        self.row = np.full(items, -1, np.int64)
        self.count, self.recent = np.zeros(items), np.zeros(items)
        self._acted: list[int] = []
        self.shown: dict[int, list[int]] = {}
        self.history: dict[int, list[int]] = {}

    def read(self, until: int) -> None:
        """Take note of the rows before `until`."""
        log = self._log
        for row in range(self._read, until):
            item = int(log.item[row])
            self.row[item] = row
            self.shown.setdefault(int(log.user[row]), []).append(item)
        for row in log.acted[np.searchsorted(log.acted, self._read) : np.searchsorted(log.acted, until)].tolist():
            self.history.setdefault(int(log.user[row]), []).append(row)
            item = int(log.item[row])
            self.count[item] += 1
            self.recent[item] += 1
            self._acted.append(item)
            if len(self._acted) > RECENT:
                self.recent[self._acted[-RECENT - 1]] -= 1
        self._read = max(self._read, until)

    def before(self, row: int) -> I64:
        """Rows that the user of `row` acted on strictly earlier."""
        known = np.array(self.history.get(int(self._log.user[row]), ()), np.int64)
        earlier: I64 = known[self._log.ts[known] < self._log.ts[row]]
        return earlier


def rank(score: F32 | F64, wanted: I64, hidden: list[list[int]]) -> I64:
    """(B,) items above the wanted one in scores (B, items), those that are hidden left out; of equals, half are above."""
    score = np.array(score, np.float64)
    own = score[np.arange(len(wanted)), wanted].copy()
    for i, items in enumerate(hidden):
        score[i, items] = -np.inf
    above = (score > own[:, None]).sum(1)
    equal = (score == own[:, None]).sum(1)
    return np.where(np.isfinite(own), above + np.maximum(equal - 1, 0) // 2, NEVER).astype(np.int64)


def measure(config: configuration.Config, log: Log, options: Options, tell: protocol.Tell | None = None) -> Ranks:
    """Search for every action, then learn from it, batch after batch."""
    rows = learner.Rows(log.inputs.ids, log.inputs.x)
    trained = learner.Retriever(config, rows)
    known, queue, random = Catalogue(log), learner.Queue(options.held), np.random.default_rng(config.learner.seed)
    found: dict[str, list[I64]] = {name: [] for name in ("popular", "recently popular", "unadapted", "adapted")}
    history: list[int] = []
    began = time.monotonic()
    for at in range(0, len(log.acted), options.batch):
        batch = log.acted[at : at + options.batch]
        known.read(int(batch[0]))
        shelf = Shelf(known.row.copy(), known.count.copy(), known.recent.copy())
        before, hidden = [], []
        for row in batch.tolist():
            known.read(row)
            before.append(known.before(row))
            hidden.append(list(known.shown.get(int(log.user[row]), ())))
        most = max(1, config.meta.support_rows // (1 + options.negatives))
        support = learner.supports(before, most, options.negatives, queue.rows(), random)
        for name, ranks in _searched(trained, shelf, log.item[batch], batch, hidden, support).items():
            found[name].append(ranks)
        history += [len(rows_) for rows_ in before]
        drawn = random.permutation(queue.rows())[: options.queue]
        every = np.concatenate([batch, drawn])
        clash = (log.item[batch, None] == log.item[every]) | (log.user[batch, None] == log.user[every])
        trained.step(batch, drawn, clash, queue.log_share(log.inputs.item[every]), support, int(log.ts[batch[-1]]))
        queue.put(batch, log.inputs.item[batch])
        if tell is not None:
            tell(min(at + options.batch, len(log.acted)), len(log.acted))
    of = {name: np.concatenate(parts) for name, parts in found.items()}
    return Ranks(of, np.array(history, np.int64), time.monotonic() - began)


def _searched(
    trained: learner.Retriever, shelf: Shelf, wanted: I64, batch: I64, hidden: list[list[int]], support: learner.Support
) -> dict[str, I64]:
    """Ranks (B,) by method."""
    there = shelf.row >= 0
    vector, bias = trained.items(shelf.row[there])
    score: dict[str, F64] = {}
    for name, user in zip(("unadapted", "adapted"), trained.users(batch, support), strict=True):
        score[name] = np.full((len(batch), len(there)), -np.inf)
        score[name][:, there] = user @ vector.T + bias
    for name, count in (("popular", shelf.total), ("recently popular", shelf.recent)):
        score[name] = np.broadcast_to(np.where(there, count, -np.inf), (len(batch), len(there)))
    return {name: rank(score[name], wanted, hidden) for name in score}


def figures(ranks: I64) -> tuple[float, float, float]:
    """Recall at 10 and 50, and NDCG at 10, of one wanted item each."""
    if not len(ranks):
        return math.nan, math.nan, math.nan
    gain = np.where(ranks < 10, 1 / np.log2(ranks.clip(max=10) + 2.0), 0.0)
    return float((ranks < 10).mean()), float((ranks < 50).mean()), float(gain.mean())


def table(measured: dict[str, Ranks], skip: int) -> tuple[Table, list[report.Row]]:
    """Figures of the actions after the first `skip`, overall and by what the user had done before; the overall ones as rows."""
    shown, rows = Table(title="what a user acts on next, among all items met so far"), []
    for head in ("method", "history", "actions", *FIGURES):
        shown.add_column(head, justify="left" if head in {"method", "history"} else "right")
    for variant, ranks in measured.items():
        history = ranks.history[skip:]
        for name, of in ranks.of.items():
            if not name.startswith(("adapted", "unadapted")) and variant != next(iter(measured)):
                continue
            label = f"{variant}, {name}" if name in {"adapted", "unadapted"} else name
            every = figures(of[skip:])
            shown.add_row(label, "all", f"{len(history):,}", *(f"{value:.4f}" for value in every))
            rows += [report.row(f"retrieval/{label}/{f}", v, "share") for f, v in zip(FIGURES, every, strict=True)]
            for bucket, (low, high) in HISTORY.items():
                inside = (history >= low) & (history < high)
                shown.add_row("", bucket, f"{inside.sum():,}", *(f"{value:.4f}" for value in figures(of[skip:][inside])))
    return shown, rows


app = typer.Typer()


@app.command()
def retrieval(
    data: Annotated[str, typer.Option(help="ml1m, simulate, or a Parquet file of shown rows")] = "ml1m",
    spec: Annotated[pathlib.Path | None, typer.Option(help="a configuration of your own, with --data")] = None,
    limit: Annotated[int | None, typer.Option(min=1000, help="only the lists of the first so many rows")] = None,
    burn_in: Annotated[float, typer.Option(min=0, max=0.9, help="share of the actions that no figure counts")] = 0.2,
    without: Annotated[bool, typer.Option("--without", help="train without the meta loss as well, and adapt that")] = False,
    report_file: Annotated[pathlib.Path | None, typer.Option("--report", help="write the figures as JSON")] = None,
) -> None:
    """Recall and NDCG of the next action, searched before it is learned, adapted and not, against popularity."""
    config = configuration.load(spec or specs.path("ml1m_retrieval"))
    if config.model.name != "two_tower":
        raise configuration.ConfigError(f'model.name: "{config.model.name}" has no vectors to search; use "two_tower"')
    if spec is None and data != "ml1m":
        raise logs.LogError(f"--data {data} needs --spec SPEC.toml, the configuration that declares its features; see examples/")
    progress = quality.Progress()
    log = log_of(
        protocol.prepare(config, quality.open_log(config, data, None, limit), protocol.Lag(), progress.stage("features"))
    )
    measured = {"two_tower": measure(config, log, Options(), progress.stage("two_tower"))}
    if without:
        alone = msgspec.structs.replace(config, meta=msgspec.structs.replace(config.meta, weight=0.0))
        measured["two_tower without meta loss"] = measure(alone, log, Options(), progress.stage("without meta loss"))
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    shown, rows = table(measured, int(burn_in * len(log.acted)))
    console.print(shown)
    for name, ranks in measured.items():
        console.print(f"{name}: {len(ranks.history) / max(ranks.seconds, 1e-9):,.0f} actions/s searched and learned")
    if report_file is not None:
        report.write(report_file, rows)
