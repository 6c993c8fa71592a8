"""`thousandfold bench retrieval`: find what a user acts on next among all items met so far, in order of time, against popularity.

Every batch of actions is searched for before it is learned from, each action with what its user did strictly before it. Items
that the user was shown before are left out for everybody; one that nobody was shown before the batch cannot be found.
"""

import time
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from learner import retrieval as learner
from state import config as configuration
from thousandfold.bench import protocol

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
RECENT = 10_000
"""Actions that the recent popularity counts."""
NEVER = 10**9


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
    """By method the rank (P,) of what was acted on, from 0, of those that were measured; how many actions the user had before;
    and their rows in the log.
    """

    of: dict[str, I64]
    history: I64
    row: I64
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
    return Ranks(of, np.array(history, np.int64), log.acted, time.monotonic() - began)


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
