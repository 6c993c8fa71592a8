"""From a request to scores: the engine's numbers as of now, the support rows that may be used, the tower adapted to them.

Nothing here waits or reads a clock. Candidates do not influence one another, except through the features that are declared
as their place in the list.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models import modes, retriever
from models.base import Known, Support
from models.scorer import Task
from serving.live import Scored, Scores
from serving.problems import Problem
from serving.requests import Request, Search
from state import config as configuration
from state import features, ids, meta_supports, spec, stores, supports

U64 = npt.NDArray[np.uint64]
F32 = npt.NDArray[np.float32]
CELLS_HELD = 1 << 18
INTRINSIC = ("user", "item", "scenario")


class Shown(NamedTuple):
    """A request as the impression that it would become."""

    request_id: str | int
    user_id: str | int
    scenario: str | int
    ts_ms: int
    items: list[Any]
    user: Any
    context: Any


class Begun(NamedTuple):
    """A request before its read: `wanted` and the distinct `tasks` are to be read; `of_task` (R,) is each candidate's task."""

    lists: features.Lists
    wanted: stores.Wanted
    tasks: U64
    of_task: npt.NDArray[np.intp] | None


class Ignored(NamedTuple):
    """Support that was read and not used: sets of another feature spec or model, rows of the future or of another trunk, and
    adaptations that diverged, which were held or taken back.
    """

    foreign: int = 0
    future: int = 0
    stale: int = 0
    diverged: int = 0

    def plus(self, other: "Ignored") -> "Ignored":
        """The sum."""
        return Ignored(*(a + b for a, b in zip(self, other, strict=True)))


class Prepared(NamedTuple):
    """A request that is ready to be scored: its tasks, and for each the rows of its candidates (None: one task has all).

    `ignored` is what was read and not used, `x` (R, D) the numbers.
    """

    tasks: list[Task]
    rows: list[npt.NDArray[np.intp]] | None
    ignored: Ignored
    x: F32


class Outcome(NamedTuple):
    """Predictions (R, outputs), the support rows that they are adapted to and why there are none, and the numbers x (R, D)."""

    scores: F32
    support_rows: int
    plain_reason: str | None
    ignored: Ignored
    x: F32


class Searched(NamedTuple):
    """Items found, and as in `Outcome` why the user's tower is plain and what was not used."""

    found: retriever.Found
    plain_reason: str | None
    ignored: Ignored


class Scoring:
    """Scores requests of one configuration; holds the cache of shared counters."""

    def __init__(self, config: configuration.Config) -> None:
        self.engine = features.Engine(config, CELLS_HELD, "reader")
        self._ids = ids.Ids()
        self._layout = supports.layout(config)
        starts = {c.name: c.start for c in spec.id_columns(config.features)}
        self._key: tuple[str | int, ...] = tuple(starts.get(p, p) if p not in INTRINSIC else p for p in config.task.key)
        self._known_shape: tuple[meta_supports.Shape, supports.Layout] | None = None
        self._config, self._max_age_ms = config, round(config.support.max_age_s * 1000)

    def begin(self, request: Request, ts_ms: int, now_s: float) -> Begun:
        """Locate all that the request reads; `now_s` is a monotonic clock, by which cached counters age."""
        return self._begun(request, request.candidates, ts_ms, now_s)

    def begin_search(self, search: Search, blank: Any, ts_ms: int, now_s: float) -> Begun:
        """The same of a request for items: a list of `blank`, an item without an id and attributes."""
        return self._begun(search, [blank], ts_ms, now_s)

    def _begun(self, request: Request | Search, items: list[Any], ts_ms: int, now_s: float) -> Begun:
        number = "" if request.request_id is None else request.request_id
        shown = Shown(number, request.user_id, request.scenario, ts_ms, items, request.user, request.context)
        lists = features.lists_of([shown], self.engine.compiled, self._ids)
        tasks, of_task = tasks_of(lists, self._key)
        return Begun(lists, self.engine.wanted(lists, None, now_s), tasks, of_task)

    def finish(
        self, scorer: Scores, begun: Begun, found: stores.Found | None, packed: list[bytes | None], now_s: float
    ) -> Outcome:
        """`prepare`, score and `conclude`."""
        prepared = self.prepare(scorer, begun, found, packed, now_s)
        return self.conclude(scorer, prepared, scorer.merged(prepared.tasks))

    def prepare(
        self, scorer: Scores, begun: Begun, found: stores.Found | None, packed: list[bytes | None], now_s: float
    ) -> Prepared:
        """What `scorer` shall score. `found` is None, and no support set is there, where the store did not answer: what is not
        cached counts as nothing.
        """
        lists = begun.lists
        if found is not None:
            self.engine.fill(begun.wanted, found, now_s)
        x = self.engine.stamp(lists)
        scenario, ts_ms = int(lists.scenario[0]), int(lists.ts[0])
        read = [self._support(scorer, value, ts_ms) for value in packed]
        ignored = functools.reduce(Ignored.plus, (left for _, left in read), Ignored())
        if begun.of_task is None:
            return Prepared([Task(lists.ids, x, scenario, read[0][0])], None, ignored, x)
        rows = [np.flatnonzero(begun.of_task == task) for task in range(len(read))]
        tasks = [Task(lists.ids[mine], x[mine], scenario, support) for mine, (support, _) in zip(rows, read, strict=True)]
        return Prepared(tasks, rows, ignored, x)

    def conclude(self, scorer: Scores, prepared: Prepared, parts: Sequence[Scored]) -> Outcome:
        """The outcome of what `scorer.merged` gave for the prepared tasks, whatever else it scored with them.

        Raises:
            Problem: 500, a score is not a finite number.
        """
        scores = parts[0].adapted
        if prepared.rows is not None:
            scores = np.empty((len(prepared.x), scores.shape[1]), np.float32)
            scores[np.concatenate(prepared.rows)] = np.concatenate([part.adapted for part in parts])
        if not np.isfinite(scores).all():
            raise Problem(500, "not_finite", "the model gave a score that is no number", "roll back: POST /admin/rollback")
        ignored = prepared.ignored.plus(Ignored(diverged=sum(part.diverged for part in parts)))
        rows = sum(part.adapted_on for part in parts)
        return Outcome(scores, rows, None if rows else _reason(scorer, prepared.tasks[0].scenario, ignored), ignored, prepared.x)

    def search(
        self, scorer: retriever.Retriever, begun: Begun, found: stores.Found | None, packed: list[bytes | None], now_s: float,
        k: int, without: Sequence[int],
    ) -> Searched:  # fmt: skip
        """Find the best `k` items but those whose hash is in `without`; otherwise as `finish`.

        Raises:
            Problem: 500, a score is not a finite number.
        """
        lists = begun.lists
        if found is not None:
            self.engine.fill(begun.wanted, found, now_s)
        x = self.engine.stamp(lists)
        scenario = int(lists.scenario[0])
        support, ignored = self._support(scorer, packed[0], int(lists.ts[0]))
        best = scorer.retrieve(retriever.Asked(lists.ids, x, scenario, support), k, without)
        if not np.isfinite(best.scores).all():
            raise Problem(500, "not_finite", "the model gave a score that is no number", "roll back: POST /admin/rollback")
        ignored = ignored.plus(Ignored(diverged=int(best.diverged)))
        return Searched(best, None if best.adapted_on else _reason(scorer, scenario, ignored), ignored)

    def _support(self, scorer: Scores, packed: bytes | None, ts_ms: int) -> tuple[Support | Known | None, Ignored]:
        """What may be used of a packed set, and what may not."""
        if packed is None:
            return None, Ignored()
        if self._config.support.mode == "features":
            return support_rows(self._layout, packed, ts_ms, self._max_age_ms)
        layout, limit = self._meta_layout(scorer.shape), self._config.support.max_drift
        return known_rows(layout, packed, ts_ms, self._max_age_ms, scorer, limit)

    def _meta_layout(self, shape: meta_supports.Shape) -> supports.Layout:
        if self._known_shape is None or self._known_shape[0] != shape:
            self._known_shape = shape, meta_supports.layout(self._config, shape)
        return self._known_shape[1]


def tasks_of(lists: features.Lists, key: tuple[str | int, ...]) -> tuple[U64, npt.NDArray[np.intp] | None]:
    """The distinct tasks of one list, and which of them each row belongs to (None: all to the only one).

    A number in `key` is a column of `ids`; a multi-valued category counts with its first value, as in the streams.
    """
    of_row = any(part == "item" or isinstance(part, int) for part in key)
    parts = [_part(lists, part) for part in key]
    task = parts[0]
    for part in parts[1:]:
        task = ids.mix(task, part)
    if not of_row:
        return task[:1], None
    tasks, place = np.unique(np.broadcast_to(task, lists.item.shape), return_inverse=True)
    return (tasks, place) if len(tasks) > 1 else (tasks, None)


def _part(lists: features.Lists, part: str | int) -> U64:
    if isinstance(part, int):
        return lists.ids[:, part]
    return {"user": lists.user, "scenario": lists.scenario, "item": lists.item}[part]


def support_rows(layout: supports.Layout, packed: bytes, ts_ms: int, max_age_ms: int) -> tuple[Support | None, Ignored]:
    """The rows of a packed set that may be used (see `in_time`), and what may not; None when it is of another feature spec."""
    rows = supports.unpack(layout, packed)
    if rows is None:
        return None, Ignored(foreign=1)
    usable, future = in_time(rows, ts_ms, max_age_ms)
    return Support(usable["ids"], usable["x"], usable["label"], usable["ts"]), Ignored(future=future)


def known_rows(
    layout: supports.Layout, packed: bytes, ts_ms: int, max_age_ms: int, scorer: Scores, max_drift: float
) -> tuple[Known | None, Ignored]:
    """The same of a packed set of meta inputs; rows of a trunk that is not the scorer's, nor near it, are stale."""
    rows = supports.unpack(layout, packed)
    if rows is None:
        return None, Ignored(foreign=1)
    usable, future = in_time(rows, ts_ms, max_age_ms)
    if scorer.trunk is None:
        return None, Ignored(future=future, stale=len(usable))
    kept = usable[meta_supports.compatible(usable, scorer.trunk, max_drift)]
    known = Known(*meta_supports.parts_of(kept, scorer.shape), kept["label"], kept["ts"])
    return known, Ignored(future=future, stale=len(usable) - len(kept))


def in_time(rows: supports.Rows, ts_ms: int, max_age_ms: int) -> tuple[supports.Rows, int]:
    """The rows that are strictly before `ts_ms` and not too old, and how many are refused because they are not before it."""
    early = rows["ts"] < ts_ms
    return rows[early & (rows["ts"] >= ts_ms - max_age_ms)], int(len(rows) - early.sum())


def _reason(scorer: Scores, scenario: int, ignored: Ignored) -> str:
    if scorer.modes.code(scenario) == modes.OFF:
        return "adaptation_off"
    reasons = {"diverged": ignored.diverged, "foreign_support": ignored.foreign, "stale_support": ignored.stale}
    return next((reason for reason, count in reasons.items() if count), "no_support")
