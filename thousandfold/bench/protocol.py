"""The prequential protocol: one pass in order of time, blocks are scored before they are trained on, minibatches are whole lists.

Features come from the product's engine, support sets and steps from the product's code; only the order of events is made here.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from learner import episodes, step
from models import base
from state import config as configuration
from state import features, ids, spec, supports
from state.kernels import kernel
from streams import samples
from thousandfold.bench import logs

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
F32 = npt.NDArray[np.float32]
CHUNK_EVENTS = 20_000
Tell = Callable[[int, int], None]


class Lag(NamedTuple):
    """How late a label is known: `rows` shown rows after its own, and `seconds` after its impression. Both 0: at once."""

    rows: int = 0
    seconds: float = 0.0


class Inputs(NamedTuple):
    """What every model of a comparison reads, lists in order of time.

    Lists (L,): `request`, `user`, `scenario`, `task` u8, `ts` i8, `start` (L + 1,), and `known`: how many lists, from the
    first, have labels that are known when this list is shown. Rows: `item`, `group` (R,), `ids` (R, F), `x` (R, D),
    `label` (R, O), NaN where there is none. `scenarios` names by hash; `lag` as it was asked for.
    """

    request: U64
    user: U64
    scenario: U64
    task: U64
    ts: I64
    start: I64
    known: I64
    item: U64
    group: U64
    ids: U64
    x: F32
    label: F32
    scenarios: dict[int, str]
    lag: Lag

    @property
    def rows(self) -> int:
        """R, rows shown."""
        return len(self.item)

    def head(self, rows: int) -> "Inputs":
        """The lists that lie within the first `rows` rows."""
        n = int(np.searchsorted(self.start, rows, side="right")) - 1
        r = int(self.start[n])
        return Inputs(
            self.request[:n], self.user[:n], self.scenario[:n], self.task[:n], self.ts[:n], self.start[: n + 1], self.known[:n],
            self.item[:r], self.group[:r], self.ids[:r], self.x[:r], self.label[:r], self.scenarios, self.lag,
        )  # fmt: skip


class Scores(NamedTuple):
    """Predictions (R, outputs) of the model as served, with adaptation, and without, by whole blocks; and `live`, adapted, of
    the training forward itself, which knows all minibatches before its own: how the running learner measures itself. With a lag,
    `live` is NaN, since rows are trained on later than they are shown.
    """

    adapted: F32
    unadapted: F32
    live: F32


class Schedule(NamedTuple):
    """Other blocks of lists than `quality.block_rows` makes, from any list on, and before which list they are trained on."""

    bounds: Sequence[tuple[int, int]]
    learned: int


def known_lists(ts: I64, start: I64, lag: Lag) -> I64:
    """(L,) how many lists have known labels when each list is shown: strictly earlier ones that the lag lets through."""
    seconds = np.searchsorted(ts, ts - round(lag.seconds * 1000), side="left")
    rows = np.searchsorted(start[1:], start[:-1] - lag.rows, side="right")
    return np.minimum(seconds, rows).astype(np.int64)


def blocked(inputs: Inputs, block_rows: int) -> Inputs:
    """The same inputs for a model that is trained between blocks only: in a block nothing more becomes known."""
    known = inputs.known.copy()
    for first, last in episodes.cut(np.diff(inputs.start), block_rows):
        known[first:last] = known[first]
    return inputs._replace(known=known)


def order_of(log: logs.Log, config: configuration.Config, lag: Lag) -> I64:
    """The order of events for the engine: list i as i, action a as -a - 1.

    An action that makes a label comes with its label's lag, others at their own time; at one time, lists come first.
    """
    lists, actions = log.lists, log.actions
    n, at = len(lists.ts), np.searchsorted(lists.ts, actions.ts, side="right")
    late = np.isin(actions.kind, [config.action_kinds.index(o.action) for o in config.objectives])
    delayed = actions.ts + np.where(late, round(lag.seconds * 1000), 0)
    at = np.maximum(at, np.searchsorted(lists.ts, delayed, side="right"))
    if lag.rows:
        start = np.r_[0, np.cumsum(lists.n_items, dtype=np.int64)]
        sorter = np.argsort(lists.request, kind="stable")
        place = np.searchsorted(lists.request, actions.request, sorter=sorter).clip(max=n - 1)
        of = sorter[place]
        ready = np.searchsorted(start[:-1], start[of + 1] + lag.rows, side="left")
        at = np.where(late & (lists.request[of] == actions.request), np.maximum(at, ready), at)
    order = np.argsort(np.concatenate([np.arange(n) * 2 + 1, 2 * at]), kind="stable")
    return np.where(order < n, order, n - order - 1).astype(np.int64)


def prepare(config: configuration.Config, log: logs.Log, lag: Lag, tell: Tell | None = None) -> Inputs:
    """Run the feature engine over a log."""
    if spec.sequences(config.features):
        # The engine fills in the last actions, which differ with the lag; the log may be read again with another.
        log = log._replace(lists=log.lists._replace(ids=log.lists.ids.copy()))
    lists, actions = log.lists, log.actions
    engine = features.Engine(config, mode="local")
    order = order_of(log, config, lag)
    row = np.r_[0, np.cumsum(lists.n_items, dtype=np.int64)]
    x = np.empty((log.rows, len(spec.number_names(config.features))), np.float32)
    for at in range(0, len(order), CHUNK_EVENTS):
        part = order[at : at + CHUNK_EVENTS]
        shown, done = part[part >= 0], -part[part < 0] - 1
        first, last = (int(shown[0]), int(shown[-1]) + 1) if len(shown) else (0, 0)
        own = np.empty(len(part), np.int64)
        own[part >= 0], own[part < 0] = shown - first, -np.arange(len(done)) - 1
        chunk = logs.part_of(lists, last, int(row[last]), first, int(row[first]))
        x[row[first] : row[last]] = features.run_local(engine, chunk, logs.chosen(actions, done), own)
        if tell is not None:
            tell(int(row[last]), log.rows)
    return _with_tasks(config, log, x, lag)


def _with_tasks(config: configuration.Config, log: logs.Log, x: F32, lag: Lag) -> Inputs:
    lists = log.lists
    columns: dict[str, npt.NDArray[Any]] = {
        "request": lists.request, "user": lists.user, "scenario": lists.scenario, "ts": lists.ts, "n_items": lists.n_items,
        "item": lists.item, "ids": lists.ids, "x": x, "label": log.label, "weight": log.label,
    }  # fmt: skip
    c = samples.with_tasks(columns, samples.routing(config).key)
    start = np.r_[0, np.cumsum(c["n_items"], dtype=np.int64)]
    of_row = np.repeat(np.arange(len(c["ts"])), c["n_items"])
    own = {"user": c["user"][of_row], "item": c["item"], "scenario": c["scenario"][of_row], "request": c["request"][of_row]}
    places = {column.name: column.start for column in spec.id_columns(config.features)}
    group = np.zeros(len(of_row), np.uint64)
    for part in config.quality.group:
        group = ids.mix(group, own[part] if part in own else c["ids"][:, places[part]])
    return Inputs(
        c["request"], c["user"], c["scenario"], c["task"], c["ts"], start, known_lists(c["ts"], start, lag),
        c["item"], group, c["ids"], c["x"], c["label"], lists.names, lag,
    )  # fmt: skip


@kernel
def _supported(
    lists: I64, inserted: int, known: I64, slots: I64, ts: I64, start: I64, rows: U64, store: U64, order: npt.NDArray[np.uint16],
    count: I64, version_at: int, max_age: int, least: int, out: U64, n_support: I64,
) -> tuple[int, int]:  # fmt: skip
    """Support rows of `lists` in order, each set as of its list: what is known is put in first, strictly earlier rows come out.

    Returns support rows written and lists inserted so far; `rows` begins with the first row of list `least`.
    """
    o = 0
    for i in range(len(lists)):
        here = lists[i]
        while inserted < known[here]:
            s = slots[inserted]
            for r in range(start[inserted] - start[least], start[inserted + 1] - start[least]):
                count[s] = supports.insert_row(store[s], order[s], count[s], rows[r], version_at, max_age)
            inserted += 1
        s = slots[here]
        n = supports.earlier(store[s], order[s], count[s], ts[here])
        for j in range(n):
            out[o] = store[s, order[s, j]]
            o += 1
        n_support[i] = n
    return o, inserted


class Supports:
    """The support sets along a log, in memory; `of` must be asked for lists in order."""

    def __init__(self, config: configuration.Config, inputs: Inputs) -> None:
        self._inputs, self._sets = inputs, supports.Sets(config, cache_bytes=1 << 40)
        tasks = np.unique(inputs.task)
        self._sets.fill(tasks, [None] * len(tasks))
        self._slots = self._sets.slots(inputs.task, change=False)
        self._inserted = 0

    def of(self, first: int, last: int) -> tuple[I64, npt.NDArray[Any]]:
        """Support rows of lists [first, last): how many each has, and all of them as records of `supports.layout`."""
        d, shape, least = self._inputs, self._sets.layout, self._inserted
        rows = self._records(least, int(d.known[last - 1]) if last > first else least)
        out = np.empty(((last - first) * shape.size, shape.words), np.uint64)
        n_support = np.empty(last - first, np.int64)
        sets = self._sets
        n, self._inserted = _supported(
            np.arange(first, last), least, d.known, self._slots, d.ts, d.start, rows, sets.store, sets.order, sets.count,
            shape.version_at, shape.max_age_ms, least, out, n_support,
        )  # fmt: skip
        return n_support, out[:n].view(shape.dtype).reshape(-1)

    def _records(self, first: int, last: int) -> U64:
        d, last = self._inputs, max(first, last)
        part, n_items = slice(int(d.start[first]), int(d.start[last])), np.diff(d.start[first : last + 1])
        rows = np.zeros(part.stop - part.start, self._sets.layout.dtype)
        for name in ("ts", "request", "scenario"):
            rows[name] = np.repeat(getattr(d, name)[first:last], n_items)
        for name in ("item", "ids", "label", "x"):
            rows[name] = getattr(d, name)[part]
        return rows.view(np.uint64).reshape(len(rows), self._sets.layout.words)


class _Block(NamedTuple):
    """Lists [first, last) with their support, as one batch; `support` (L + 1,) bounds the support rows of each list."""

    first: int
    last: int
    batch: base.Batch
    support: I64


def _block(inputs: Inputs, known: Supports, first: int, last: int) -> _Block:
    n_support, s = known.of(first, last)
    low, high = int(inputs.start[first]), int(inputs.start[last])
    label = inputs.label[low:high]
    batch = base.Batch(
        inputs.ids[low:high], inputs.x[low:high], label, np.isfinite(label).astype(np.float32), inputs.scenario[first:last],
        np.diff(inputs.start[first : last + 1]), n_support,
        *(np.ascontiguousarray(s[name]) for name in ("ids", "x", "label", "ts")),
    )  # fmt: skip
    return _Block(first, last, batch, np.r_[0, np.cumsum(n_support)])


def _part(block: _Block, inputs: Inputs, first: int, last: int) -> base.Batch:
    """Lists [first, last) of a block, as views."""
    b, a, z = block.batch, first - block.first, last - block.first
    low, high = (int(inputs.start[i] - inputs.start[block.first]) for i in (first, last))
    s, t = int(block.support[a]), int(block.support[z])
    return base.Batch(
        b.ids[low:high], b.x[low:high], b.label[low:high], b.weight[low:high], b.scenario[a:z], b.n_items[a:z], b.n_support[a:z],
        b.s_ids[s:t], b.s_x[s:t], b.s_label[s:t], b.s_ts[s:t],
    )  # fmt: skip


def frozen(inputs: Inputs, lists: int) -> Inputs:
    """The same inputs where labels of the first `lists` lists only ever become known."""
    return inputs._replace(known=np.minimum(inputs.known, lists))


def run(
    config: configuration.Config,
    inputs: Inputs,
    tell: Tell | None = None,
    trainer: step.Trainer | None = None,
    until: int | None = None,
    schedule: Schedule | None = None,
    since: int = 0,
) -> Scores:
    """One pass: every block is scored whole, then what has become known is trained on, in minibatches of whole lists.

    `trainer` is trained instead of a new one. Lists from `until` on are scored only: neither trained on nor support. With a
    `schedule`, those from `learned` on are not trained on but are support. Blocks that end before list `since` are not scored.

    Raises:
        FloatingPointError: a step was skipped because its loss or gradient was not finite; lower the learning rates.
    """
    until = len(inputs.ts) if until is None else until
    inputs = frozen(inputs, until)
    trainer, known = trainer or step.Trainer(config), Supports(config, inputs)
    outputs = trainer.model.objectives
    out = Scores(*(np.full((inputs.rows, outputs), np.nan, np.float32) for _ in Scores._fields))
    waiting: list[_Block] = []
    bounds, learned = schedule or (episodes.cut(np.diff(inputs.start), config.quality.block_rows), until)
    for first, last in bounds:
        block = _block(inputs, known, first, last)
        low, high = int(inputs.start[first]), int(inputs.start[last])
        if last > since:
            scored = trainer.score(block.batch)
            out.adapted[low:high], out.unadapted[low:high] = scored.adapted, scored.unadapted
        if first < min(until, learned):
            waiting.append(block)
        # The end of the log tells the labels of the last block, unless they are late.
        ready = int(inputs.known[last]) if last < len(inputs.ts) else 0 if any(inputs.lag) else min(last, until)
        waiting = _train(trainer, config, inputs, waiting, ready, out.live)
        if tell is not None:
            tell(high, inputs.rows)
    return out


def _train(
    trainer: step.Trainer, config: configuration.Config, inputs: Inputs, waiting: list[_Block], ready: int, live: F32
) -> list[_Block]:
    """Train on the lists before `ready`, note what was predicted meanwhile, and return what still waits for labels."""
    left: list[_Block] = []
    for block in waiting:
        end = min(block.last, ready)
        if end > block.first:
            n_items = np.diff(inputs.start[block.first : end + 1])
            for a, z in episodes.cut(n_items, config.learner.rows_per_step):
                a, z = block.first + a, block.first + z  # noqa: PLW2901
                done = trainer.step(_part(block, inputs, a, z), int(inputs.ts[z - 1]))
                if not any(inputs.lag):
                    live[int(inputs.start[a]) : int(inputs.start[z])] = done.adapted
                if done.skipped:
                    raise FloatingPointError(f"lists {a} to {z}: {done.skipped}; lower the rates in [optimizer]")
        if end < block.last:
            rest = block if end <= block.first else _rest(block, inputs, end)
            left.append(rest)
    return left


def _rest(block: _Block, inputs: Inputs, first: int) -> _Block:
    support = block.support[first - block.first :]
    return _Block(first, block.last, _part(block, inputs, first, block.last), support - support[0])
