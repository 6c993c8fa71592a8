"""The feature engine: every value of a sample from strictly earlier events, the same code in streams, serving, replay and bench.

A worker's round: `wanted` names what must be read, `fill` takes what was read, `run` stamps and counts the events in order; now
and then `take` drains what the store lacks and `merged` takes its reply. Values do not depend on where batches are cut.
"""

from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from state import caches, ids, layout, stamping, stores, users
from state import config as configuration
from state.events import Actions, Lists, actions_of, lists_of, no_actions, no_lists

__all__ = ["Actions", "Engine", "Lists", "actions_of", "is_empty", "lists_of", "no_actions", "no_lists", "run_local"]

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


class _Prepared(NamedTuple):
    """A batch whose cells are located: what `wanted` found out and `run` uses."""

    lists: Lists
    actions: Actions
    order: I64
    batch: stamping.Batch
    resolved: stamping.Resolved
    slots: npt.NDArray[np.int32]
    a_slots: npt.NDArray[np.int32]
    wanted: stores.Wanted


def is_empty(wanted: stores.Wanted) -> bool:
    """Whether nothing has to be read."""
    return not (len(wanted.users) or len(wanted.items) or any(len(keys) for keys in wanted.cells))


class Engine:
    """The feature spec over counter cells, user rows and item attributes. Not for several threads at once.

    `mode`: "owner" counts for a store, the only writer of its users; "reader" stamps only and owns no user, so that it wants
    user rows and cells of users every time, shared cells once they are `config.store.cache_age_s` old; "local" has no store: what
    is unknown starts from nothing. `capacity` cells of each kind of key (a quarter of it in users and items) are held; more only
    while the store lacks them or one batch needs them.
    Counters: `missing_numbers`, `surplus_values`, `unknown_requests`, `duplicate_actions`; `duplicates` (L,) of the last `run`.
    """

    def __init__(
        self, config: configuration.Config, capacity: int = 1 << 20, mode: Literal["owner", "reader", "local"] = "owner"
    ) -> None:
        self.compiled = layout.compiled(config)
        self.schema: stores.Schema = self.compiled.schema
        self._mode, self._age_s = mode, config.store.cache_age_s
        self._cells = caches.CellCache(self.compiled, capacity, tracked=mode == "owner")
        self._users = caches.RowCache(capacity // 4, self.compiled.user)
        words = self.schema.item_bytes // 8
        self._items = caches.RowCache(capacity // 4, np.dtype(np.uint64), (words,))
        self._plan = self.compiled.plan
        self._has_items = len(self._plan.item_columns) > 0
        self._width = int(self._plan.n_cells.sum())
        self._batch, self._now_s, self._none = 0, 0.0, no_actions()
        self._prepared: _Prepared | None = None
        self.missing_numbers = self.surplus_values = self.unknown_requests = self.duplicate_actions = 0
        self.duplicates: Mask = np.zeros(0, np.bool_)

    def wanted(
        self,
        lists: Lists,
        actions: Actions | None,
        now_s: float,
        order: I64 | None = None,
        fresh_lists: Mask | None = None,
        fresh_actions: Mask | None = None,
    ) -> stores.Wanted:
        """What must be read before these events can run; see `run` for `order` and the masks.

        Ask, read and `fill` until the answer is empty: which cells an action counts in may depend on a row that is yet unknown.
        """
        actions = self._none if actions is None else actions
        held = self._prepared
        if held is not None and held.lists is lists and held.actions is actions:
            return held.wanted
        order = np.arange(len(lists.ts)) if order is None else order
        self._batch, self._now_s = self._batch + 1, now_s
        people = self._users.slots(np.concatenate([lists.user, actions.user]), self._batch)
        reader = self._mode == "reader"
        new_users = self._users.unread(people, np.inf if reader else -np.inf)
        item_slots, new_items = self._item_slots(lists, actions)
        if self._mode == "local":
            self._users.zero(new_users)
            self._items.zero(new_items)
            new_users, new_items = new_users[:0], new_items[:0]
        batch = _batch(lists, actions, people, fresh_lists, fresh_actions)
        complete = len(actions.ts) == 0 or not (len(new_users) or len(new_items))
        resolved = _unresolved(lists, actions if complete else no_actions(), self.compiled.id_width)
        rows, oldest = [_rows_of_lists(lists)], [now_s - self._age_s]
        if len(actions.ts) and complete:
            self._resolve(order, batch, people, item_slots, resolved)
            rows.append(_rows_of_actions(actions, batch, resolved))
            oldest.append(-np.inf)  # an action only adds: however old the value beneath is, nothing is stamped from it
        slots, found = self._locate(rows, oldest)
        if self._mode == "local":
            self._cells.zero(found)
            found = found[:0]
        wanted = stores.Wanted(
            self._cells.wanted(found), self._users.table.keys[0, new_users], self._items.table.keys[0, new_items]
        )
        a_slots = slots[1] if len(slots) > 1 else np.zeros((0, self._width), np.int32)
        if complete:
            self._prepared = _Prepared(lists, actions, order, batch, resolved, slots[0], a_slots, wanted)
        return wanted

    def ahead(self, lists: Lists, now_s: float) -> stores.Wanted:
        """What lists that will run later need of the store: nothing depends on the answer, so it may be read at leisure.

        Not between `wanted` and `run` of a batch. `wanted` as of the same `now_s` asks for what was not filled by then.
        """
        self._batch += 1
        people = self._users.slots(lists.user, self._batch)
        _, found = self._locate([_rows_of_lists(lists)], [now_s - self._age_s])
        none = np.zeros(0, np.uint64)
        return stores.Wanted(self._cells.wanted(found), self._users.table.keys[0, self._users.unread(people, -np.inf)], none)

    def fill(self, wanted: stores.Wanted, found: stores.Found, now_s: float) -> None:
        """Take over what was read for `wanted`; several may be under way if their replies come in the order of the questions."""
        self._cells.fill(wanted.cells, found.cells, now_s)
        self._users.fill(wanted.users, found.users, now_s, replace=self._mode == "reader")
        self._items.fill(wanted.items, found.items, now_s, replace=False)
        if self._prepared is not None and self._prepared.wanted is wanted:
            self._prepared = self._prepared._replace(wanted=self._nothing())

    def run(
        self,
        lists: Lists,
        actions: Actions | None,
        order: I64 | None = None,
        fresh_lists: Mask | None = None,
        fresh_actions: Mask | None = None,
    ) -> F32:
        """Stamp and count events, and return the numbers x (R, D), rows in the order of `lists`.

        The columns of `lists.ids` that hold the user's last actions are filled in place.

        `order` is the sequence: i >= 0 is list i, i < 0 is action -i - 1; without it the lists alone. Events that are not fresh
        are skipped, so are lists whose request the user's row holds already (`duplicates` afterwards): their rows of x are zero.

        Raises:
            RuntimeError: something that `wanted` names has not been filled.
        """
        if self._mode == "reader":
            raise RuntimeError("a reader counts nothing: use stamp(), or an Engine with mode='owner'")
        actions = self._none if actions is None else actions
        if not is_empty(self.wanted(lists, actions, self._now_s, order, fresh_lists, fresh_actions)):
            self._prepared = None
            raise RuntimeError("unread state: read and fill() what wanted() names until it names nothing, then run()")
        p, self._prepared = self._prepared, None
        if p is None:
            raise RuntimeError("unread state: wanted() named users or items that were not filled")
        if not len(actions.ts):
            self._resolve(p.order, p.batch, p.batch.user, self._item_slots(lists, actions)[0], p.resolved)
        self.duplicates = p.resolved.duplicate
        x = np.zeros((len(lists.item), self.compiled.number_width), np.float32)
        missing, unknown, twice = stamping.run(
            self._plan,
            p.order,
            p.batch,
            self._cells.arrays,
            users.rings(self._users.rows),
            self._users.table,
            p.slots,
            p.a_slots,
            p.resolved,
            x,
            self._room(lists),
        )
        self.missing_numbers += missing
        self.unknown_requests += unknown
        self.duplicate_actions += twice
        self.surplus_values += lists.surplus
        return x

    def stamp(self, lists: Lists) -> F32:
        """The numbers x (R, D) of lists as of now, counting nothing; fills `lists.ids` as `run` does. What was not read counts
        as nothing.
        """
        people = self._users.find(lists.user)
        batch = _batch(lists, no_actions(), people, None, None)
        slots = np.empty((len(lists.item), self._width), np.int32)
        arrays = self._cells.arrays
        stamping.locate(self._plan, arrays.table, _rows_of_lists(lists), -1, np.zeros(0), slots, np.zeros((0, 2), np.int64), 0)
        x = np.zeros((len(lists.item), self.compiled.number_width), np.float32)
        self.missing_numbers += stamping.stamp(
            self._plan, batch, arrays, users.rings(self._users.rows), slots, x, self._room(lists)
        )
        return x

    def take(self) -> stores.Counted:
        """All that the store lacks, without fences: deltas of shared cells, values of owned ones, user rows, item attributes."""
        return stores.Counted((), self._cells.take(), self._users.take(), self._items.take())

    def merged(self, values: tuple[stores.F64, ...]) -> None:
        """What the store's `count` returned for the last `take`."""
        self._cells.merged(values, self._now_s)
        self._users.merged()
        self._items.merged()

    def forget(self) -> None:
        """Partitions were revoked: drop every user row and owned cell that the store has. Count what is pending first."""
        self._cells.forget_owned()
        self._users.forget()
        self._prepared = None

    def _nothing(self) -> stores.Wanted:
        none = np.zeros(0, np.uint64)
        return stores.Wanted(tuple(none for _ in self.compiled.layouts), none, none)

    def _room(self, lists: Lists) -> stores.F64:
        return np.empty((int(lists.n_items.max(initial=0)), self.compiled.number_width))

    def _item_slots(self, lists: Lists, actions: Actions) -> tuple[tuple[I64, I64], I64]:
        """Slots in the table of item attributes of rows and of actions, and which of the actions' are unread."""
        if not self._has_items or self._mode == "reader":
            none = np.zeros(0, np.int64)
            return (none, none), none
        slots = self._items.slots(np.concatenate([lists.item, actions.item]), self._batch)
        of_rows, of_actions = slots[: len(lists.item)], slots[len(lists.item) :]
        return (of_rows, of_actions), self._items.unread(of_actions[actions.item != ids.PAD], -np.inf)

    def _resolve(
        self, order: I64, batch: stamping.Batch, people: I64, items: tuple[I64, I64], resolved: stamping.Resolved
    ) -> None:
        """Find duplicates and what actions do not carry, on a scratch copy of the users' rings: nothing is counted yet."""
        slots, place = np.unique(people, return_inverse=True)
        n = len(batch.ts)
        scratch = batch._replace(user=place[:n], a_user=place[n:])
        rows = users.rings(self._users.rows[slots])
        stamping.resolve(self._plan, order, scratch, rows, self._items.table, self._items.rows, *items, resolved)

    def _locate(self, rows: list[stamping.Rows], oldest: list[float]) -> tuple[list[npt.NDArray[np.int32]], I64]:
        """Slots of every row's cells, and the (kind, slot) pairs to read: shared ones also if read before the rows' `oldest`."""
        oldest_owned = np.inf if self._mode == "reader" else -np.inf
        owned, never = np.array(self.compiled.owned), self._mode == "local"
        ages = [np.where(owned, oldest_owned, -np.inf if never else bound) for bound in oldest]
        slots = [np.empty((len(r.of), self._width), np.int32) for r in rows]
        found = np.empty((sum(s.size for s in slots), 2), np.int64)
        while True:
            n = 0
            for r, out, age in zip(rows, slots, ages, strict=True):
                n = stamping.locate(self._plan, self._cells.table, r, self._batch, age, out, found, n)
                if n < 0:
                    self._cells.make_room(-1 - n, self._batch)
                    self._batch += 1
                    break
            if n >= 0:
                return slots, found[:n]


def run_local(engine: Engine, lists: Lists, actions: Actions | None = None, order: I64 | None = None) -> F32:
    """`engine.run` with no store, for benchmarks and replay; the engine's mode must be "local"."""
    return engine.run(lists, actions, order)


def _batch(lists: Lists, actions: Actions, people: I64, fresh_lists: Mask | None, fresh_actions: Mask | None) -> stamping.Batch:
    n = len(lists.ts)
    return stamping.Batch(
        lists.request,
        lists.scenario,
        lists.ts,
        lists.n_items,
        np.cumsum(lists.n_items, dtype=np.int64) - lists.n_items,
        people[:n],
        lists.item,
        lists.ids,
        lists.numbers,
        np.ones(n, np.bool_) if fresh_lists is None else fresh_lists,
        actions.request,
        actions.item,
        actions.ts,
        actions.kind,
        people[n:],
        np.ones(len(actions.ts), np.bool_) if fresh_actions is None else fresh_actions,
    )


def _unresolved(lists: Lists, actions: Actions, id_width: int) -> stamping.Resolved:
    n = len(actions.ts)
    return stamping.Resolved(
        np.zeros(len(lists.ts), np.bool_),
        np.zeros(n, np.int64),
        np.zeros(n, np.uint64),
        np.full((n, id_width), ids.PAD, np.uint64),
    )


def _rows_of_lists(lists: Lists) -> stamping.Rows:
    n = len(lists.item)
    of = np.repeat(np.arange(len(lists.ts)), lists.n_items)
    everything = stamping.HAS_REQUEST | stamping.HAS_ITEM | stamping.HAS_ATTRIBUTES
    return stamping.Rows(of, lists.user, lists.scenario, lists.item, lists.ids, np.full(n, everything), np.full(n, -1, np.int64))


def _rows_of_actions(actions: Actions, batch: stamping.Batch, resolved: stamping.Resolved) -> stamping.Rows:
    kinds = np.where(batch.a_fresh, actions.kind, 0).astype(np.int64)
    allowed = np.where(batch.a_fresh, resolved.allowed, 0)
    return stamping.Rows(np.arange(len(actions.ts)), actions.user, resolved.scenario, actions.item, resolved.ids, allowed, kinds)
