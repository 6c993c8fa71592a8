"""From a request to scores: the engine's numbers as of now, the support rows that may be used, the tower adapted to them.

Nothing here waits or reads a clock. Candidates do not influence one another, except through the features that are declared
as their place in the list.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models import modes
from models.base import Support
from models.scorer import Task
from serving.live import Scores
from serving.problems import Problem
from serving.requests import Request
from state import config as configuration
from state import features, ids, spec, stores, supports

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


class Outcome(NamedTuple):
    """Predictions (R, outputs), the support rows that they are adapted to and why there are none, and the numbers x (R, D)."""

    scores: F32
    support_rows: int
    plain_reason: str | None
    foreign: int
    x: F32


class Scoring:
    """Scores requests of one configuration; holds the cache of shared counters."""

    def __init__(self, config: configuration.Config) -> None:
        self.engine = features.Engine(config, CELLS_HELD, "reader")
        self._ids = ids.Ids()
        self._layout = supports.layout(config)
        starts = {c.name: c.start for c in spec.id_columns(config.features)}
        self._key: tuple[str | int, ...] = tuple(starts.get(p, p) if p not in INTRINSIC else p for p in config.task.key)
        self._max_age_ms = round(config.support.max_age_s * 1000)

    def begin(self, request: Request, ts_ms: int, now_s: float) -> Begun:
        """Locate all that the request reads; `now_s` is a monotonic clock, by which cached counters age."""
        number = "" if request.request_id is None else request.request_id
        shown = Shown(number, request.user_id, request.scenario, ts_ms, request.candidates, request.user, request.context)
        lists = features.lists_of([shown], self.engine.compiled, self._ids)
        tasks, of_task = tasks_of(lists, self._key)
        return Begun(lists, self.engine.wanted(lists, None, now_s), tasks, of_task)

    def finish(
        self, scorer: Scores, begun: Begun, found: stores.Found | None, packed: list[bytes | None], now_s: float
    ) -> Outcome:
        """Score, with `found` None and no support set where the store did not answer: what is not cached counts as nothing.

        Raises:
            Problem: 500, a score is not a finite number.
        """
        lists = begun.lists
        if found is not None:
            self.engine.fill(begun.wanted, found, now_s)
        x = self.engine.stamp(lists)
        scenario, ts_ms = int(lists.scenario[0]), int(lists.ts[0])
        chosen = [support_rows(self._layout, value, ts_ms, self._max_age_ms) for value in packed]
        scores, rows = _by_task(scorer, begun, x, chosen)
        if not np.isfinite(scores).all():
            raise Problem(500, "not_finite", "the model gave a score that is no number", "roll back: POST /admin/rollback")
        foreign = sum(value is not None and kept is None for value, kept in zip(packed, chosen, strict=True))
        return Outcome(scores, rows, None if rows else _reason(scorer, scenario, foreign), foreign, x)


def _by_task(scorer: Scores, begun: Begun, x: F32, chosen: list[Support | None]) -> tuple[F32, int]:
    """Predictions, and support rows used; candidates of several tasks are scored in one pass, each adapted to its own."""
    scenario, found = int(begun.lists.scenario[0]), begun.lists.ids
    if begun.of_task is None:
        scored = scorer.score(found, x, scenario, chosen[0])
        return scored.adapted, scored.adapted_on
    rows = [np.flatnonzero(begun.of_task == task) for task in range(len(chosen))]
    parts = scorer.merged([Task(found[mine], x[mine], scenario, s) for mine, s in zip(rows, chosen, strict=True)])
    scores = np.empty((len(x), parts[0].adapted.shape[1]), np.float32)
    scores[np.concatenate(rows)] = np.concatenate([part.adapted for part in parts])
    return scores, sum(part.adapted_on for part in parts)


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


def support_rows(layout: supports.Layout, packed: bytes | None, ts_ms: int, max_age_ms: int) -> Support | None:
    """The rows of a packed set that are strictly before `ts_ms` and not too old; None when absent or of another feature spec."""
    rows = None if packed is None else supports.unpack(layout, packed)
    if rows is None:
        return None
    usable = rows[(rows["ts"] < ts_ms) & (rows["ts"] >= ts_ms - max_age_ms)]
    return Support(usable["ids"], usable["x"], usable["label"], usable["ts"])


def _reason(scorer: Scores, scenario: int, foreign: int) -> str:
    if scorer.modes.code(scenario) == modes.OFF:
        return "adaptation_off"
    return "foreign_support" if foreign else "no_support"
