"""Requests that arrive together are scored in one pass (T8): those that wait in the same window of the event loop.

Off unless `serving.merging.max_requests` is above 1. A window opens with the first request that is ready to be scored and ends
when `max_requests` wait, or `max_wait_ms` later; with 0 at the loop's next turn, so that only those are merged which the loop had
ready at the same time. Each reply is what the request would get alone, within the rounding of `Scorer.merged` (1e-6).
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

from models.scorer import Task
from serving.live import Scored, Scores
from state import config as configuration


class _Waiting(NamedTuple):
    """A request in the window: its tasks, the model that it began with, and where its part of the pass goes."""

    scorer: Scores
    tasks: Sequence[Task]
    parts: "asyncio.Future[Sequence[Scored]]"


class Merger:
    """The window of one event loop.

    `merged` is told of each pass how many requests it scored, `failed` of each that failed for several requests.
    """

    def __init__(self, settings: configuration.Merging, merged: Callable[[int], None], failed: Callable[[], None]) -> None:
        self._most, self._wait_s = settings.max_requests, settings.max_wait_ms / 1000
        self._merged, self._failed = merged, failed
        self._window: list[_Waiting] = []
        self._end: asyncio.Handle | None = None

    async def score(self, scorer: Scores, tasks: Sequence[Task]) -> Sequence[Scored]:
        """One request's tasks as `scorer.merged(tasks)` scores them. What that raises for them alone, no other request sees."""
        if self._most <= 1:
            return scorer.merged(tasks)
        loop = asyncio.get_running_loop()
        one = _Waiting(scorer, tasks, loop.create_future())
        self._window.append(one)
        if len(self._window) >= self._most:
            self._close()
        elif self._end is None:
            self._end = loop.call_later(self._wait_s, self._close) if self._wait_s else loop.call_soon(self._close)
        return await one.parts

    def _close(self) -> None:
        """Score what waits; of what was cancelled, nothing. A swap may have come between: each model scores its own requests."""
        if self._end is not None:
            self._end.cancel()
            self._end = None
        window, self._window = self._window, []
        by_model: dict[int, list[_Waiting]] = {}
        for one in window:
            if not one.parts.done():
                by_model.setdefault(id(one.scorer), []).append(one)
        for group in by_model.values():
            self._together(group)

    def _together(self, group: list[_Waiting]) -> None:
        try:
            parts = group[0].scorer.merged([task for one in group for task in one.tasks])
        except Exception as error:  # noqa: BLE001 - whatever it is, it goes to the request that it belongs to
            if len(group) == 1:
                group[0].parts.set_exception(error)
                return
            self._failed()
            for one in group:
                self._together([one])
            return
        self._merged(len(group))
        at = 0
        for one in group:
            one.parts.set_result(parts[at : at + len(one.tasks)])
            at += len(one.tasks)
