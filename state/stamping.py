"""The kernels of the feature engine: one pass over events in order; a list is stamped and then counted, an action is counted.

Nothing here reorders a sum, so the same events give the same bytes however they are cut into batches.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from state import cells, ids, layout, spec, tables, users
from state.kernels import kernel

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]
F32 = npt.NDArray[np.float32]

HAS_REQUEST, HAS_ITEM, HAS_ATTRIBUTES = 1, 2, 4
_HEAD, _DECAY, _LAST = cells.HEAD, cells.DECAY, cells.LAST
_RATE, _COUNT, _ACTIONS, _RESIDUAL = layout.RATE, layout.COUNT, layout.ACTIONS, layout.RESIDUAL
_USER, _ITEM, _SCENARIO = layout.USER, layout.ITEM, layout.SCENARIO
_ANY, _THIS_ITEM = layout.ANY, layout.THIS_ITEM
_OF_ITEM, _OF_KIND, _OF_AGE = layout.OF_ITEM, layout.OF_KIND, layout.OF_AGE
_AGES = spec.AGE_BUCKETS
_PAD = np.uint64(ids.PAD)
_ITEM_HEAD = layout.ITEM_HEAD
_UNKNOWN, _PENDING, _FLYING, _ASKED = tables.UNKNOWN, tables.PENDING, tables.FLYING, tables.ASKED

mixed = kernel(ids.mixed)


class Cells(NamedTuple):
    """All counter cells: those of kind k start at `base[k]` in `values` (absolute) and `pending` (what the store lacks)."""

    table: tables.Table
    base: I64
    values: F64
    pending: F64
    tracked: int


class Rows(NamedTuple):
    """What cells are located for: rows of lists, or actions. `of` (n,) points into `user` and `scenario`.

    `allowed` (n,) says what is known (HAS_*); `action` (n,) is the kind of action whose cells are wanted, -1 for all cells.
    """

    of: I64
    user: U64
    scenario: U64
    item: U64
    ids: U64
    allowed: I64
    action: I64


@kernel
def locate(plan: layout.Plan, table: tables.Table, rows: Rows, batch: int, oldest: F64, slots: Any, wanted: Any, n: int) -> int:
    """Fill `slots` (rows, M) with the slot of each cell, -1 where there is none, adding the unseen ones.

    Cells to read, unseen or read before `oldest[kind]`, are appended to `wanted` (., 2) as (kind, slot) from row `n` on.
    Returns the new n, or -1 - kind when that kind is full.
    """
    for i in range(len(rows.of)):
        of, action, allowed = rows.of[i], rows.action[i], rows.allowed[i]
        for k in range(len(plan.parts)):
            first = plan.first_cell[k]
            usable = (
                (action < 0 or plan.action_column[k, action] >= 0)
                and (plan.needs_request[k] == 0 or allowed & HAS_REQUEST)
                and (plan.needs_item[k] == 0 or allowed & HAS_ITEM)
                and (plan.needs_attributes[k] == 0 or allowed & HAS_ATTRIBUTES)
            )
            for c in range(plan.n_cells[k]):
                slots[i, first + c] = -1
                if not usable:
                    continue
                key, rest, present = plan.seed[k], c, True
                for p in range(plan.parts[k]):
                    code = plan.part[k, p]
                    if code == _USER:
                        value = rows.user[of]
                    elif code == _ITEM:
                        value = rows.item[i]
                    elif code == _SCENARIO:
                        value = rows.scenario[of]
                    else:
                        width = plan.part_width[k, p]
                        value = rows.ids[i, plan.part_start[k, p] + rest % width]
                        rest //= width
                        present = present and value != _PAD
                    key = mixed(key, value)
                if not present:
                    continue
                if batch < 0:
                    slots[i, first + c] = tables.find(table, k, key)
                    continue
                slot = tables.add(table, k, key)
                if slot < 0:
                    return -1 - k
                slots[i, first + c] = slot
                if table.seen[k, slot] != batch:
                    table.seen[k, slot] = batch
                    flags = table.flags[k, slot]
                    old = (flags & _FLYING) == 0 and table.read_at[k, slot] < oldest[k]
                    if flags & _UNKNOWN or old:
                        table.flags[k, slot] = flags | _ASKED
                        wanted[n, 0], wanted[n, 1] = k, slot
                        n += 1
    return n


class Batch(NamedTuple):
    """Events as the kernels read them: `start` (L,) first row of each list, `user` and `a_user` slots of user rows (-1: none)."""

    request: U64
    scenario: U64
    ts: I64
    n_items: npt.NDArray[np.int32]
    start: I64
    user: I64
    item: U64
    ids: U64
    numbers: F32
    fresh: npt.NDArray[np.bool_]
    a_request: U64
    a_item: U64
    a_ts: I64
    a_kind: npt.NDArray[np.int16]
    a_user: I64
    a_fresh: npt.NDArray[np.bool_]


class Resolved(NamedTuple):
    """What an action does not carry, found in its order: `allowed`, `scenario` (A,), `ids` (A, F); `duplicate` (L,) lists."""

    duplicate: npt.NDArray[np.bool_]
    allowed: I64
    scenario: U64
    ids: U64


@kernel
def resolve(
    plan: layout.Plan,
    order: I64,
    b: Batch,
    rings: users.Rings,
    items: tables.Table,
    item_rows: U64,
    item_slot: I64,
    a_item_slot: I64,
    out: Resolved,
) -> None:
    """Walk the events once: push requests into `rings` (a scratch copy, by the batch's users), keep `item_rows` up to date."""
    for o in order:
        if o >= 0:
            u = b.user[o]
            out.duplicate[o] = b.fresh[o] and users.find_request(rings, u, b.request[o]) >= 0
            if not b.fresh[o] or out.duplicate[o]:
                continue
            place = users.push_request(rings, u, b.request[o], b.scenario[o], b.ts[o])
            for j in range(len(plan.list_columns)):
                rings.request_ids[u, place, j] = b.ids[b.start[o], plan.list_columns[j]]
            if len(plan.item_columns) == 0:
                continue
            for r in range(b.start[o], b.start[o] + b.n_items[o]):
                slot, changed = item_slot[r], item_rows[item_slot[r], 0] == 0
                item_rows[slot, 0] = np.uint64(1)
                for j in range(len(plan.item_columns)):
                    value = b.ids[r, plan.item_columns[j]]
                    changed = changed or item_rows[slot, _ITEM_HEAD + j] != value
                    item_rows[slot, _ITEM_HEAD + j] = value
                if changed:
                    items.flags[0, slot] = (items.flags[0, slot] | _PENDING) & ~np.uint8(_UNKNOWN | _ASKED)
        else:
            a = -o - 1
            if not b.a_fresh[a]:
                continue
            u = b.a_user[a]
            place = users.find_request(rings, u, b.a_request[a])
            if place >= 0:
                out.allowed[a] |= HAS_REQUEST
                out.scenario[a] = rings.scenario[u, place]
                for j in range(len(plan.list_columns)):
                    out.ids[a, plan.list_columns[j]] = rings.request_ids[u, place, j]
            if b.a_item[a] != _PAD:
                out.allowed[a] |= HAS_ITEM
                if len(plan.item_columns) and item_rows[a_item_slot[a], 0] != 0:
                    out.allowed[a] |= HAS_ATTRIBUTES
                    for j in range(len(plan.item_columns)):
                        out.ids[a, plan.item_columns[j]] = item_rows[a_item_slot[a], _ITEM_HEAD + j]


@kernel
def _statistics(plan: layout.Plan, c: Cells, slots: Any, ts: int, first: int, values: F64) -> None:
    """The statistics of one row, from the cells at `slots` (M,), into `values` (D,) from `first` on."""
    for s in range(len(plan.operation)):
        k = plan.kind[s]
        operation, window, width, columns = plan.operation[s], plan.window[s], plan.width[k], plan.columns[k]
        code, size = plan.window_code[k, window], plan.window_size[k, window]
        shown, acted, expected, newest = 0.0, 0.0, 0.0, 0.0
        for j in range(plan.first_cell[k], plan.first_cell[k] + plan.n_cells[k]):
            slot = slots[j]
            if slot < 0:
                continue
            cell = c.base[k] + slot * width
            at = cell + _HEAD + window * columns
            weight = 1.0
            if code == _DECAY:
                weight = 2.0 ** (-max(ts - c.values[cell], 0.0) / size)
            newest = max(newest, c.values[cell + 1])
            shown += weight * c.values[at]
            acted += weight * c.values[at + plan.column[s]]
            expected += weight * c.values[at + plan.expected_column[s]]
        if operation == _RATE:
            if plan.toward[s] >= 0:
                toward = values[first + plan.toward[s]]
            else:
                toward = 0.0
                if slots[0] >= 0:
                    whole = c.base[0] + slots[0] * plan.width[0] + _HEAD
                    if c.values[whole] > 0.0:
                        toward = c.values[whole + plan.stream_column[s]] / c.values[whole]
            weight = shown + plan.prior[s]
            value = (acted + plan.prior[s] * toward) / weight if weight > 0.0 else toward
        elif operation == _COUNT:
            value = math.log1p(shown)
        elif operation == _ACTIONS:
            value = math.log1p(acted)
        elif operation == _RESIDUAL:
            weight = shown + plan.prior[s]
            value = (acted - expected) / weight if weight > 0.0 else 0.0
        else:
            value = math.log1p(max(ts - newest, 0.0) / 1000.0) if newest > 0.0 else -1.0
        values[first + s] = value


@kernel
def _recent(
    plan: layout.Plan, rings: users.Rings, user: int, ts: int, item: np.uint64, ids: U64, first: int, values: F64
) -> None:
    """What the user lately did, for one row; `user` -1 did nothing."""
    length = rings.item.shape[1]
    for q in range(len(plan.match)):
        count, newest = 0, -1
        for k in range(min(rings.actions[user], users.ACTIONS) if user >= 0 else 0):
            h = k if length == users.ACTIONS else (rings.actions[user] - 1 - k) % length
            age = max(ts - rings.ts[user, h], 0)
            if age > plan.match_max_ms[q] or (plan.match_action[q] >= 0 and rings.kind[user, h] != plan.match_action[q]):
                continue
            hit = plan.match[q] == _ANY or (plan.match[q] == _THIS_ITEM and rings.item[user, h] == item)
            if plan.match[q] == layout.CATEGORY:
                for i in range(plan.match_width[q]):
                    value = ids[plan.match_start[q] + i]
                    if value == _PAD or value == plan.known[0]:
                        continue
                    for j in range(plan.match_width[q]):
                        hit = hit or rings.ids[user, h, plan.match_ring[q] + j] == value
            if hit:
                count += 1
                newest = age if newest < 0 else min(newest, age)
        if plan.match_is_age[q]:
            values[first + q] = math.log1p(newest / 1000.0) if newest >= 0 else -1.0
        else:
            values[first + q] = count


@kernel
def _behaviour(wanted: I64, known: U64, rings: users.Rings, user: int, ts: int, out: U64) -> None:
    """The user's last actions, newest first, into the sequence columns of all rows of a list's ids; `user` -1 did nothing."""
    length = rings.item.shape[1]
    done = min(rings.actions[user], length) if user >= 0 else 0
    for q in range(len(wanted)):
        code, start, kept = wanted[q, 0], wanted[q, 1], wanted[q, 3]
        for back in range(wanted[q, 2]):
            value = _PAD
            if back < done:
                h = (rings.actions[user] - 1 - back) % length
                if code == _OF_ITEM:
                    value = rings.item[user, h]
                elif code == _OF_KIND:
                    value = known[1 + _AGES + rings.kind[user, h]]
                elif code == _OF_AGE:
                    seconds, bucket = max(ts - rings.ts[user, h], 0) // 1000 + 1, 0
                    while seconds > 1 and bucket < _AGES - 1:
                        seconds >>= 1
                        bucket += 1
                    value = known[1 + bucket]
                else:
                    value = rings.ids[user, h, kept]
            for i in range(len(out)):
                out[i, start + back] = value


@kernel
def _stamp(plan: layout.Plan, c: Cells, rings: users.Rings, b: Batch, o: int, slots: Any, x: F32, values: F64) -> int:
    """All numbers of list `o` into its rows of `x` (R, D); `values` is room for the longest list. Returns missing numbers."""
    missing, ts, start = 0, b.ts[o], b.start[o]
    n, numbers = b.n_items[o], len(plan.log)
    recent = numbers + len(plan.operation)
    place = recent + len(plan.match)
    for i in range(n):
        r = start + i
        for j in range(numbers):
            value = float(b.numbers[r, j])
            if math.isnan(value):
                missing += 1
                value = 0.0
            elif plan.log[j]:
                value = math.copysign(math.log1p(abs(value)), value)
            values[i, j] = value
        _statistics(plan, c, slots[r], ts, numbers, values[i])
        _recent(plan, rings, b.user[o], ts, b.item[r], b.ids[r], recent, values[i])
    for p in range(len(plan.place_of)):
        column = plan.place_of[p]
        mean = 0.0
        for i in range(n):
            mean += values[i, column]
        mean /= n
        for i in range(n):
            if plan.place_is_rank[p]:
                greater = 0
                for j in range(n):
                    greater += values[j, column] > values[i, column]
                values[i, place + p] = greater
            else:
                values[i, place + p] = values[i, column] - mean
    for i in range(n):
        for j in range(x.shape[1]):
            x[start + i, j] = values[i, j]
    return missing


@kernel
def _expose(plan: layout.Plan, k: int, arena: F64, cell: int, ts: int, expected: F64) -> None:
    """Count one exposure in the cell of kind `k` that starts at `cell`; `expected` (S,) holds the rates that X sums."""
    before = arena[cell]
    t = max(before, ts)
    columns, n = plan.columns[k], plan.n_expected[k]
    for w in range(plan.n_windows[k]):
        keep, add, size = 1.0, 1.0, plan.window_size[k, w]
        if plan.window_code[k, w] == _DECAY:
            keep, add = 2.0 ** (-(t - before) / size), 2.0 ** (-(t - ts) / size)
        elif plan.window_code[k, w] == _LAST:
            keep = 1.0 - 1.0 / size
        at = cell + _HEAD + w * columns
        if keep != 1.0:
            for j in range(at, at + columns):
                arena[j] *= keep
        arena[at] += add
        for j in range(n):
            arena[at + columns - n + j] += add * expected[plan.expected[k, j]]
    arena[cell] = t
    arena[cell + 1] = max(arena[cell + 1], ts)


@kernel
def _act(plan: layout.Plan, k: int, arena: F64, cell: int, ts: int, column: int) -> None:
    """Count one action in `column` of a cell; unlike an exposure it does not age a `last` window."""
    before = arena[cell]
    t = max(before, ts)
    columns = plan.columns[k]
    for w in range(plan.n_windows[k]):
        at, add = cell + _HEAD + w * columns, 1.0
        if plan.window_code[k, w] == _DECAY:
            keep, add = 2.0 ** (-(t - before) / plan.window_size[k, w]), 2.0 ** (-(t - ts) / plan.window_size[k, w])
            for j in range(at, at + columns):
                arena[j] *= keep
        arena[at + column] += add
    arena[cell] = t


@kernel
def run(
    plan: layout.Plan,
    order: I64,
    b: Batch,
    c: Cells,
    rings: users.Rings,
    user_table: tables.Table,
    slots: Any,
    a_slots: Any,
    found: Resolved,
    x: F32,
    values: F64,
) -> tuple[int, int, int]:
    """Stamp and count all events in order. Returns missing numbers, actions of unknown requests, actions sent twice."""
    missing, unknown, twice = 0, 0, 0
    first = len(plan.log)
    for o in order:
        if o >= 0:
            if not b.fresh[o] or found.duplicate[o]:
                continue
            u = b.user[o]
            missing += _stamp(plan, c, rings, b, o, slots, x, values)
            if len(plan.behaviour):
                _behaviour(plan.behaviour, plan.known, rings, u, b.ts[o], b.ids[b.start[o] : b.start[o] + b.n_items[o]])
            for i in range(b.n_items[o]):
                for k in range(len(plan.parts)):
                    for j in range(plan.first_cell[k], plan.first_cell[k] + plan.n_cells[k]):
                        slot = slots[b.start[o] + i, j]
                        if slot < 0:
                            continue
                        cell = c.base[k] + slot * plan.width[k]
                        _expose(plan, k, c.values, cell, b.ts[o], values[i, first:])
                        if c.tracked:
                            c.table.flags[k, slot] |= _PENDING
                            if plan.owned[k] == 0:
                                _expose(plan, k, c.pending, cell, b.ts[o], values[i, first:])
            place = users.push_request(rings, u, b.request[o], b.scenario[o], b.ts[o])
            for j in range(len(plan.list_columns)):
                rings.request_ids[u, place, j] = b.ids[b.start[o], plan.list_columns[j]]
        else:
            a = -o - 1
            u, ts, kind = b.a_user[a], b.a_ts[a], b.a_kind[a]
            if not b.a_fresh[a]:
                continue
            if users.has_action(rings, u, b.a_item[a], ts, kind):
                twice += 1
                continue
            unknown += (found.allowed[a] & HAS_REQUEST) == 0
            for k in range(len(plan.parts)):
                for j in range(plan.first_cell[k], plan.first_cell[k] + plan.n_cells[k]):
                    slot = a_slots[a, j]
                    if slot < 0:
                        continue
                    cell = c.base[k] + slot * plan.width[k]
                    _act(plan, k, c.values, cell, ts, plan.action_column[k, kind])
                    if c.tracked:
                        c.table.flags[k, slot] |= _PENDING
                        if plan.owned[k] == 0:
                            _act(plan, k, c.pending, cell, ts, plan.action_column[k, kind])
            place = users.push_action(rings, u, b.a_item[a], ts, kind)
            for j in range(len(plan.ring_columns)):
                rings.ids[u, place, j] = found.ids[a, plan.ring_columns[j]]
            if len(plan.ring_columns) < rings.ids.shape[2]:
                rings.ids[u, place, len(plan.ring_columns)] = found.scenario[a] if found.allowed[a] & HAS_REQUEST else _PAD
        if c.tracked:
            user_table.flags[0, u] |= _PENDING
    return missing, unknown, twice


@kernel
def stamp(plan: layout.Plan, b: Batch, c: Cells, rings: users.Rings, slots: Any, x: F32, values: F64) -> int:
    """Stamp every list and count nothing. Returns the missing numbers."""
    missing = 0
    for o in range(len(b.ts)):
        missing += _stamp(plan, c, rings, b, o, slots, x, values)
        if len(plan.behaviour):
            rows = b.ids[b.start[o] : b.start[o] + b.n_items[o]]
            _behaviour(plan.behaviour, plan.known, rings, b.user[o], b.ts[o], rows)
    return missing
