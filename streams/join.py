"""The label join of one input partition: shown lists and actions in, labelled lists out, in event time.

Pure and driven by its input alone: the watermark travels in the messages, so reading the same messages again gives the same
output. Set semantics: duplicates change nothing, and input in any order within the allowed lateness gives the same samples.

When may a message be released (acknowledged)? Let W be the window and T the newest event time of all released messages, actions
included. A message is held until the watermark passes its newest event time plus 2 W (and the slack below). So when T's message
was released the watermark had passed T + 2 W, and every list up to T + W that had come by then was closed and delivered, every
action up to T + W was settled. After a restart the first message read says T (`before_ms`), and until the watermark has passed
T + 2 W again only messages are read that had come by then. Of those, a list up to T + W keeps its place but is not emitted
again, and an action of an unknown request up to T + W is a repetition. A list after T + W has all its actions in messages
that are read again, so it comes out as it would have without the restart.

Further copies. Enrich sends lists and actions in the order of their offsets in `impressions` and `clicks`; only after a crash
of its own it sends some again. So what is not above the newest offset before it is a copy; a restart is told `before_offsets`.
"""

import heapq
import math
from collections import deque
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from state import ids
from state.columns import Columns, known
from state.config import Config, Objective

F32 = npt.NDArray[np.float32]
Index = npt.NDArray[np.int64]
LISTS = ("request", "user", "scenario", "ts", "n_items")
ROWS = ("item", "ids", "x")
PROPENSITY = "propensity"
"""Column of rows that a message has where somebody said how likely its items were to be shown where they were."""
NEVER, FOREVER = -(2**62), 2**62


class Meaning(NamedTuple):
    """What an objective's label is. A label that does not exist is NaN and has weight 0."""

    gains: tuple[float, ...] | None
    """The label that each kind of action gives; None: the action's own value."""
    start: float
    """The label of a row without action."""
    scenarios: frozenset[int]
    """Hashes of the scenarios in which the objective exists; empty: in all."""


class Rules(NamedTuple):
    """What the join needs of a configuration. `objectives[kind]` lists (objective, least value) of that kind of action.

    `meanings` is empty where every objective is binary and exists in every scenario.
    """

    window_ms: int
    lateness_ms: int
    eager: bool
    objectives: tuple[tuple[tuple[int, float], ...], ...]
    n_objectives: int
    meanings: tuple[Meaning, ...] = ()


def rules(config: Config) -> Rules:
    """The join's part of a configuration."""
    kinds = config.action_kinds
    by_kind = tuple(tuple((i, o.min_value) for i, o in enumerate(config.objectives) if kind in o.kinds) for kind in kinds)
    window_ms, lateness_ms = round(config.join.window_s * 1000), round(config.join.lateness_s * 1000)
    plain = all(o.kind == "binary" and not o.scenarios for o in config.objectives)
    meanings = () if plain else tuple(_meaning(o, kinds) for o in config.objectives)
    return Rules(window_ms, lateness_ms, config.join.mode == "eager", by_kind, len(config.objectives), meanings)


def _meaning(objective: Objective, kinds: tuple[str, ...]) -> Meaning:
    scenarios = frozenset(ids.of(name) for name in objective.scenarios)
    if objective.kind == "binary":
        return Meaning((1.0,) * len(kinds), 0.0, scenarios)
    if objective.kind == "ranking":
        gains = tuple(objective.weights.get(kind, 1.0) for kind in kinds) if objective.weights else None
        return Meaning(gains, 0.0, scenarios)
    return Meaning(None, math.nan, scenarios)


class Unjoined(NamedTuple):
    """An action that became no label, for dead-letters: where it stood in `clicks`, its bytes, and why (`late` or `orphan`)."""

    reason: str
    detail: str
    offset: int
    raw: bytes


class Output(NamedTuple):
    """What may leave: columns of lists (`samples` without `task`), actions without a list, tokens to release, in order."""

    lists: Columns | None
    unjoined: list[Unjoined]
    released: list[Any]
    items: dict[int, str]
    """Ids of items as they were sent, by hash, as far as the messages of these lists told them."""


class Counts:
    """What became of the input. Every action is counted once; `copies` counts further copies of a list."""

    __slots__ = ("copies", "labels", "late", "lists", "orphans", "others", "repeated", "revisions")

    def __init__(self) -> None:
        self.lists = self.copies = self.labels = self.late = self.orphans = self.others = self.repeated = self.revisions = 0


class _Action(NamedTuple):
    request: int
    item: int
    ts: int
    labels: tuple[tuple[int, float], ...]
    """(objective, label) that it gives its row."""
    offset: int
    raw: bytes


class _Block:
    """The lists of one message, with their labels so far and the number of revisions of each.

    Lists up to `quiet_until` were delivered before a restart.
    """

    __slots__ = ("columns", "ends", "item", "items", "label", "quiet_until", "revisions", "starts", "ts")

    def __init__(self, columns: Columns, rules: Rules, quiet_until: int, items: dict[int, str]) -> None:
        self.items = items
        self.columns, self.item, self.quiet_until = columns, columns["item"], quiet_until
        ends = np.cumsum(columns["n_items"], dtype=np.int64)
        self.starts: list[int] = (ends - columns["n_items"]).tolist()
        self.ends: list[int] = ends.tolist()
        self.ts: list[int] = columns["ts"].tolist()
        self.label: F32 = np.zeros((len(self.item), rules.n_objectives), np.float32)
        for o, meaning in enumerate(rules.meanings):
            self.label[:, o] = meaning.start
            if meaning.scenarios:
                absent = ~np.isin(columns["scenario"], np.array(sorted(meaning.scenarios), np.uint64))
                self.label[np.repeat(absent, columns["n_items"]), o] = np.nan
        self.revisions = [0] * len(self.ts)


class _Piece(NamedTuple):
    """Lists of a block to be emitted: `which` (ascending) None means all, `rows` are theirs. Labels are those of emission."""

    block: _Block
    which: Index | None
    rows: slice | Index
    version: int
    label: F32
    weight: F32


class Partition:
    """The open lists and waiting actions of one input partition."""

    def __init__(self, rules: Rules) -> None:
        self.rules, self.counts = rules, Counts()
        self.watermark_ms = NEVER
        self.open_lists = 0
        self._settled_ms: int | None = None
        # Lists of one message up to this far apart in time leave together; a stray one must not hold the others back.
        self._slack_ms = max(rules.lateness_ms, 1000)
        self._memory_ms = 2 * rules.window_ms + self._slack_ms
        # request -> (block, place in it) of its list, None once it is closed
        self._lists: dict[int, tuple[_Block, int] | None] = {}
        self._runs: list[tuple[int, int, _Block, Index | None]] = []
        self._closed: deque[tuple[int, list[int]]] = deque()
        self._waiting: dict[int, list[_Action]] = {}
        self._expiry: list[tuple[int, int, int]] = []
        self._newest = [-1, -1]
        self._held: deque[tuple[int, Any]] = deque()
        self._pieces: list[_Piece] = []
        self._unjoined: list[Unjoined] = []
        self._order = 0

    def take(self, head: dict[str, Any], columns: Columns, token: Any) -> None:
        """Take one message of `enriched`: its lists, then its actions, then its watermark.

        `token` is given back by `emit` when the message may be acknowledged. `head` holds `watermark_ms` and, where it is known,
        `before_ms` and `before_offsets`: the newest event time and the newest offsets of the messages before this one.
        """
        before = int(head.get("before_ms", NEVER))
        if self._settled_ms is None:
            self._settled_ms, self._newest = before, list(head.get("before_offsets", self._newest))
        self._bound_unreadable(before)
        hold = NEVER
        if len(columns["ts"]):
            items = {int(key): str(name) for key, name in head.get("items", {}).items()}
            hold = self._take_lists(columns, items)
        if len(columns["a_ts"]):
            hold = max(hold, self._take_actions(columns))
        self._held.append((hold, token))
        self.advance(int(head["watermark_ms"]))

    def skip(self, token: Any) -> None:
        """Take an unreadable message. How long it must be held is known when the next one says what was before it."""
        self._held.append((FOREVER, token))

    def _bound_unreadable(self, before: int) -> None:
        """Hold the unreadable messages at the end as long as if they held an event of `before`."""
        tokens = []
        while self._held and self._held[-1][0] == FOREVER:
            tokens.append(self._held.pop()[1])
        self._held.extend((before + self._memory_ms, token) for token in reversed(tokens))

    def advance(self, event_ms: int) -> None:
        """Move the watermark: all input up to `event_ms` less the allowed lateness has been taken."""
        self.watermark_ms = max(self.watermark_ms, event_ms - self.rules.lateness_ms)

    def emit(self) -> Output:
        """Close what the watermark has passed and return what may leave since the last call."""
        self._close()
        self._expire()
        self._forget()
        released = []
        while self._held and self._held[0][0] <= self.watermark_ms:
            released.append(self._held.popleft()[1])
        pieces, self._pieces = self._pieces, []
        unjoined, self._unjoined = self._unjoined, []
        items: dict[int, str] = {}
        for block in {id(piece.block): piece.block for piece in pieces}.values():
            items |= block.items
        return Output(_joined(pieces) if pieces else None, unjoined, released, items)

    def _take_lists(self, columns: Columns, items: dict[int, str]) -> int:
        """Open the lists that are seen for the first time; return when their message may be released."""
        requests, known = columns["request"].tolist(), self._lists
        block = _Block(columns, self.rules, self._delivered_until(), items)
        copies = []
        for i, (request, offset) in enumerate(zip(requests, columns["offset"].tolist(), strict=True)):
            if offset <= self._newest[0] or request in known:
                copies.append(i)
                continue
            self._newest[0] = offset
            known[request] = (block, i)
            for action in self._waiting.pop(request, ()):
                self._label(action, block, i, revise=False)
        which = np.delete(np.arange(len(requests)), copies) if copies else None
        fresh = len(requests) - len(copies)
        self.open_lists += fresh
        self.counts.lists += fresh
        self.counts.copies += len(copies)
        if self.rules.eager:
            self._pieces += _first(block, which)
        for newest, run in _runs(columns["ts"], which, self._slack_ms):
            self._order += 1
            heapq.heappush(self._runs, (newest, self._order, block, run))
        return max(int(columns["ts"].max()), self.watermark_ms) + self._memory_ms

    def _take_actions(self, columns: Columns) -> int:
        """Give each action to its list, or let it wait for one; return when their message may be released."""
        ends = np.cumsum(columns["a_raw_length"], dtype=np.int64)
        names = ("a_request", "a_item", "a_ts", "a_kind", "a_value", "a_offset")
        raw = columns["a_raw"]
        fields = zip(*(columns[n].tolist() for n in names), (ends - columns["a_raw_length"]).tolist(), ends.tolist(), strict=True)
        for request, item, ts, kind, value, offset, start, end in fields:
            if offset <= self._newest[1]:
                self.counts.repeated += 1
                continue
            self._newest[1] = offset
            labels = tuple((i, self._gain(i, kind, value)) for i, least in self.rules.objectives[kind] if value >= least)
            if not labels or item == ids.PAD:
                self.counts.others += 1
                continue
            self._act(_Action(request, item, ts, labels, offset, raw[start:end].tobytes()))
        return int(columns["a_ts"].max()) + self._memory_ms

    def _gain(self, objective: int, kind: int, value: float) -> float:
        """The label that an action gives, as the column of labels holds it."""
        if not self.rules.meanings:
            return 1.0
        gains = self.rules.meanings[objective].gains
        return float(np.float32(value if gains is None else gains[kind]))

    def _act(self, action: _Action) -> None:
        request = action.request
        if request in self._lists:
            place = self._lists[request]
            if place is None:
                self._drop("late", "its list is closed", action)
            else:
                self._label(action, *place, revise=self.rules.eager)
        elif action.ts <= self._delivered_until():
            self.counts.repeated += 1
        else:
            self._waiting.setdefault(request, []).append(action)
            heapq.heappush(self._expiry, (action.ts + self.rules.window_ms, action.offset, request))

    def _delivered_until(self) -> int:
        """Event time up to which all that this message holds was settled before a restart: see the head of this file."""
        settled, window = self._settled_ms, self.rules.window_ms
        return settled + window if settled is not None and self.watermark_ms < settled + self._memory_ms else NEVER

    def _label(self, action: _Action, block: _Block, i: int, *, revise: bool) -> None:
        """Set the labels that `action` gives its list, if it is about one of its items and in time."""
        shown = block.ts[i]
        until = shown + self.rules.window_ms
        if until <= self.watermark_ms:
            self._drop("late", f"the window of its list ended at {until}", action)
            return
        if not shown <= action.ts <= until:
            self._drop("late", f"ts_ms {action.ts} is outside the window of its list, {shown} to {until}", action)
            return
        start, end = block.starts[i], block.ends[i]
        items = block.item[start:end].tolist()
        if action.item not in items:
            self._drop("orphan", "its request did not show this item", action)
            return
        given = self._existing(action.labels, block, i)
        if not given:
            self.counts.others += 1
            return
        self.counts.labels += 1
        row, new = start + items.index(action.item), []
        for o, value in given:
            # Of several actions the greatest counts, whatever their order; NaN is nothing yet.
            if not block.label.item(row, o) >= value:
                block.label[row, o] = value
                new.append(o)
        if new and revise and shown > block.quiet_until:
            self._revise(block, i, row - start, new)

    def _existing(self, labels: tuple[tuple[int, float], ...], block: _Block, i: int) -> tuple[tuple[int, float], ...]:
        """Those of objectives that the scenario of list `i` has."""
        meanings = self.rules.meanings
        if not meanings:
            return labels
        scenario = int(block.columns["scenario"][i])
        return tuple(label for label in labels if not (own := meanings[label[0]].scenarios) or scenario in own)

    def _revise(self, block: _Block, i: int, place: int, new: list[int]) -> None:
        """Emit the list again with its labels so far; only what rose has weight."""
        self.counts.revisions += 1
        block.revisions[i] += 1
        rows = slice(block.starts[i], block.ends[i])
        label = block.label[rows].copy()
        weight = np.zeros_like(label)
        weight[place, new] = 1
        self._pieces.append(_Piece(block, np.array([i]), rows, block.revisions[i], label, weight))

    def _drop(self, reason: str, detail: str, action: _Action) -> None:
        if reason == "late":
            self.counts.late += 1
        else:
            self.counts.orphans += 1
        self._unjoined.append(Unjoined(reason, detail, action.offset, action.raw))

    def _close(self) -> None:
        """Close the lists whose window has passed, oldest first, those of one message together."""
        window, watermark, runs = self.rules.window_ms, self.watermark_ms, self._runs
        while runs and runs[0][0] + window <= watermark:
            newest, _, block, which = heapq.heappop(runs)
            requests = block.columns["request"] if which is None else block.columns["request"][which]
            gone = requests.tolist()
            self._lists.update(dict.fromkeys(gone))
            self._closed.append((newest, gone))
            self.open_lists -= len(gone)
            if not self.rules.eager:
                self._pieces += _first(block, which)

    def _expire(self) -> None:
        """Give up actions whose list did not come within the window."""
        expiry = self._expiry
        while expiry and expiry[0][0] <= self.watermark_ms:
            until, offset, request = heapq.heappop(expiry)
            waiting = self._waiting.pop(request, [])
            left = [action for action in waiting if action.offset != offset]
            if left:
                self._waiting[request] = left
            for action in waiting:
                if action.offset == offset:
                    self._drop("orphan", f"no impression of its request came until {until}", action)

    def _forget(self) -> None:
        """Drop what is only kept to recognise repetitions."""
        horizon = self.watermark_ms - self._memory_ms
        while self._closed and self._closed[0][0] <= horizon:
            for request in self._closed.popleft()[1]:
                self._lists.pop(request, None)


def _first(block: _Block, which: Index | None) -> list[_Piece]:
    """Version 0 of lists of a block, but those delivered before a restart: every label that exists has weight 1."""
    times = block.columns["ts"] if which is None else block.columns["ts"][which]
    loud = times > block.quiet_until
    if not loud.any():
        return []
    if not loud.all():
        which = np.flatnonzero(loud) if which is None else which[loud]
    rows: slice | Index = slice(None)
    if which is not None:
        chosen = np.zeros(len(block.ts), bool)
        chosen[which] = True
        rows = np.flatnonzero(np.repeat(chosen, block.columns["n_items"]))
    label = block.label[rows].copy()
    return [_Piece(block, which, rows, 0, label, (~np.isnan(label)).astype(np.float32))]


def _runs(ts: npt.NDArray[np.int64], which: Index | None, span_ms: int) -> list[tuple[int, Index | None]]:
    """Cut lists into runs that span at most `span_ms` of event time: (newest time, ascending indices)."""
    times = ts if which is None else ts[which]
    if not len(times):
        return []
    if int(times.max()) - int(times.min()) <= span_ms:
        return [(int(times.max()), which)]
    chosen = np.arange(len(ts)) if which is None else which
    out: list[tuple[int, Index | None]] = []
    order = np.argsort(times, kind="stable")
    start = 0
    for end in range(1, len(order) + 1):
        if end == len(order) or times[order[end]] - times[order[start]] > span_ms:
            out.append((int(times[order[end - 1]]), np.sort(chosen[order[start:end]])))
            start = end
    return out


def _joined(pieces: list[_Piece]) -> Columns:
    """The columns of all pieces, one after the other."""
    out: Columns = {}
    for name in LISTS:
        out[name] = np.concatenate([p.block.columns[name] if p.which is None else p.block.columns[name][p.which] for p in pieces])
    counts = [len(p.block.ts) if p.which is None else len(p.which) for p in pieces]
    out["version"] = np.repeat(np.array([p.version for p in pieces], np.int32), counts)
    for name in ROWS:
        out[name] = np.concatenate([p.block.columns[name][p.rows] for p in pieces])
    out["label"] = np.concatenate([p.label for p in pieces])
    out["weight"] = np.concatenate([p.weight for p in pieces])
    if any(PROPENSITY in p.block.columns for p in pieces):
        out |= known({PROPENSITY: np.concatenate([_propensity(p) for p in pieces])})
    return out


def _propensity(piece: _Piece) -> F32:
    found = piece.block.columns.get(PROPENSITY)
    return np.full(len(piece.label), np.nan, np.float32) if found is None else found[piece.rows]
