"""The scoring service: what happens to a request, and the background work beside it."""

import asyncio
import contextlib
import functools
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from models import losses, retriever
from serving import (
    asyncio_merger,
    disk_shelf,
    divergence,
    down_sampling,
    exploration,
    http_admin,
    http_public,
    redis_reads,
    requests,
    scoring,
    watching,
)
from serving.live import Live, Model, Scores
from serving.metrics import Metrics
from serving.problems import Problem
from state import config as configuration
from state import credentials, ids, meta_supports, redis_store, stores, supports

log = logging.getLogger("serving")
MAX_WAITING = 256
STORE_TIMEOUT_S = 1.0
LOADER_NICE = 10
WARM_UP = b'{"user_id": "warm up", "scenario": "warm up", "candidates": [{"item_id": "warm up"}]}'


class Service:
    """One process's state; its methods run on the event loop, `load` in the loader's thread."""

    def __init__(self, config: configuration.Config, store: stores.Store, scoring: scoring.Scoring) -> None:
        self.config = config
        self.metrics = Metrics()
        self.decoder = requests.Decoder(config)
        self.live = Live()
        self.loader: Executor = ThreadPoolExecutor(1, "loader", initializer=_yield_to_requests)
        shelf = disk_shelf.DiskShelf(config, self.load)
        self.watcher = watching.Watcher(shelf, self.live, now_ms, self.metrics.refused.inc)
        self.reads = redis_reads.Reads(store, config.serving, self.metrics)
        self._scoring = scoring
        plan = losses.plan(config.objectives)
        self._outputs = sum(part.width for part in plan.parts)
        self._objectives = dict(zip((o.name for o in config.objectives), plan.parts, strict=True))
        self._scenarios = {o.name: frozenset(map(ids.of, o.scenarios)) for o in config.objectives}
        self._switches: dict[str | int | None, http_admin.Mode] = {}
        self._watch = divergence.Watch(config)
        self._sampling = down_sampling.Correction(config)
        self._explores = config.serving.exploration if config.serving.exploration.share else None
        self._exposures = exploration.column(config) if self._explores else -1
        self._merger = asyncio_merger.Merger(config.serving.merging, self.metrics.merges.observe, self.metrics.failed_merges.inc)
        self._waiting = 0

    async def answer(self, request: requests.Request) -> requests.Reply:
        """Score one request.

        Raises:
            Problem: 503, no model is loaded yet, or too many requests wait already.
        """
        model, begun, answer = await self._read(request.ts_ms, functools.partial(self._scoring.begin, request))
        prepared = self._scoring.prepare(model.scorer, begun, answer.found, answer.supports, time.monotonic())
        self._waiting += 1
        try:
            parts = await self._merger.score(model.scorer, prepared.tasks)
        finally:
            self._waiting -= 1
        outcome = self._scoring.conclude(model.scorer, prepared, parts)
        return self._reply(request, model, outcome, answer.trouble, int(begun.lists.ts[0]))

    async def retrieve(self, search: requests.Search) -> requests.Found:
        """Find items for one user.

        Raises:
            Problem: as `answer`; 404, the model has no vectors of items; 422, the scenario does not have the first objective.
        """
        if self.config.model.name != "two_tower":
            raise _no_retrieval(f"model.name is {self.config.model.name!r}, which has no vectors of items")
        objective = self.config.objectives[0].name
        if (known := self._scenarios[objective]) and ids.of(search.scenario) not in known:
            raise Problem(
                422, "no_objective", f"scenario {search.scenario!r} does not have the objective {objective!r}",
                "items are found by the first objective; add the scenario to it",
            )  # fmt: skip
        begin = functools.partial(self._scoring.begin_search, search, self.decoder.blank)
        model, begun, answer = await self._read(search.ts_ms, begin)
        if not isinstance(model.scorer, retriever.Retriever) or model.scorer.refusal:
            raise _no_retrieval(getattr(model.scorer, "refusal", "the model that answers has no vectors of items"))
        without = [ids.of(item) for item in search.exclude]
        searched = self._scoring.search(
            model.scorer, begun, answer.found, answer.supports, time.monotonic(), search.k, without
        )  # fmt: skip
        reason = self._noted(model, answer.trouble or searched.plain_reason, searched.ignored)
        found = searched.found
        scores = np.zeros((len(found.items), self._outputs), np.float32)
        scores[:, 0] = found.scores
        return requests.Found(
            request_id=search.request_id,
            version=model.version,
            step=model.step,
            items=found.items,
            scores=self._sampling.apply(scores, ids.of(search.scenario))[:, 0].tolist(),
            known=len(model.scorer.index.names),
            adapted=found.adapted_on > 0,
            support_rows=found.adapted_on,
            mode="adapted" if found.adapted_on else "plain",
            degraded=reason,
            took_ms=0.0,
        )

    async def _read(
        self, ts_ms: int | None, begin: Callable[[int, float], scoring.Begun]
    ) -> tuple[Model, scoring.Begun, redis_reads.Answer]:
        """Begin a request and read what it needs; the model is the one that answers when all is there."""
        if self.live.current is None:
            raise self._no_model()
        if self._waiting >= MAX_WAITING:
            raise Problem(503, "overloaded", f"{MAX_WAITING} requests wait already", "repeat it later", {"Retry-After": "1"})
        begun = begin(now_ms() if ts_ms is None else ts_ms, time.monotonic())
        self._waiting += 1
        try:
            answer = await self.reads.read(begun.wanted, begun.tasks)
        finally:
            self._waiting -= 1
        return self.live.current, begun, answer

    def _noted(self, model: Model, reason: str | None, ignored: scoring.Ignored) -> str | None:
        """Count a reply of `model`, why its tower is plain and what it did not use; what the reply says of the former."""
        if reason is not None:
            self.metrics.plain.labels(reason).inc()
        self.metrics.ignored(ignored)
        scored_ms = now_ms()
        if self.live.scored(model.version, scored_ms):
            self.metrics.first_scored(model.version, scored_ms)
        return None if reason == "adaptation_off" else reason

    def _reply(
        self, request: requests.Request, model: Model, outcome: scoring.Outcome, trouble: redis_reads.Trouble | None, ts_ms: int
    ) -> requests.Reply:
        reason = self._noted(model, trouble or outcome.plain_reason, outcome.ignored)
        self.metrics.candidates.inc(len(outcome.scores))
        self._watch.observe(model.scorer, request.scenario, outcome.x, outcome.scores[:, 0])
        outcome = outcome._replace(scores=self._sampling.apply(outcome.scores, ids.of(request.scenario)))
        chosen = request.objectives or self._objectives
        return requests.Reply(
            request_id=request.request_id,
            version=model.version,
            step=model.step,
            scores={name: self._answer(name, request.scenario, outcome.scores) for name in chosen},
            adapted=outcome.support_rows > 0,
            support_rows=outcome.support_rows,
            mode="adapted" if outcome.support_rows else "plain",
            degraded=reason,
            took_ms=0.0,
            exploration=self._explored(request, outcome, ts_ms, known=trouble is None),
        )

    def _explored(
        self, request: requests.Request, outcome: scoring.Outcome, ts_ms: int, *, known: bool
    ) -> exploration.Exploration | None:
        """The order to show in; without the store nobody knows what is new, and the order is that of the scores."""
        if self._explores is None:
            return None
        score = outcome.scores[:, 0]
        seen = np.expm1(outcome.x[:, self._exposures].astype(np.float64)) if known else np.full(len(score), np.inf)
        name = (request.request_id, request.user_id, request.scenario, ts_ms)
        chosen = exploration.explore(self._explores, score, seen, exploration.draws(self._explores.seed, *name))
        self.metrics.explored.inc(chosen.explored is not None)
        return chosen

    def _answer(self, objective: str, scenario: str | int, scores: scoring.F32) -> requests.Answer:
        """An objective's part of predictions (R, outputs)."""
        part, known = self._objectives[objective], self._scenarios[objective]
        if known and ids.of(scenario) not in known:
            return None
        own: list[Any] = (scores[:, part.at : part.at + part.width] if part.kind == "multiclass" else scores[:, part.at]).tolist()
        return own

    async def readiness(self) -> http_public.Ready:
        """Which model answers, and the store's state, found out now.

        Raises:
            Problem: 503, no model is loaded yet.
        """
        store = await self.reads.state()
        if self.live.current is None:
            raise self._no_model(f"; the store is {store}")
        version, step, created_ms, _ = self.live.current
        return http_public.Ready(True, version, step, created_ms, store, self.reads.breaker_state())

    def _no_model(self, also: str = "") -> Problem:
        poll_s, folder = self.config.serving.poll_s, self.config.snapshot.directory
        return Problem(
            503,
            "no_model",
            f"no snapshot has been loaded yet{also}",
            f"start the learner; it must write to {folder}, the snapshot.directory of this service",
            {"Retry-After": str(max(1, round(poll_s)))},
        )

    def load(self, config: configuration.Config, arrays: Mapping[str, npt.NDArray[Any]]) -> Scores:
        """A scorer with the switches that were set here."""
        built = retriever.build(config, arrays)
        self._apply_switches(built)
        return built

    def switch(self, scenario: str | int | None, mode: http_admin.Mode) -> http_admin.Modes:
        """Set the meta-learning mode of a scenario, or of all without one of their own, until the process ends."""
        self._switches[None if scenario is None else str(scenario)] = mode
        if self.live.current is not None:
            self._apply_switches(self.live.current.scorer)
        return http_admin.Modes({"*" if name is None else str(name): m for name, m in self._switches.items()})

    def _apply_switches(self, built: Scores) -> None:
        for scenario, mode in list(self._switches.items()):
            built.modes.set(scenario, mode)

    def swapped(self, model: Model) -> None:
        """Note that `model` answers from now on."""
        self._apply_switches(model.scorer)
        self.metrics.swapped(model)
        if isinstance(model.scorer, retriever.Retriever):
            self.metrics.items.set(len(model.scorer.index.names))
        log.info("model %s, step %d, answers from now on; engine: %s", model.version, model.step, model.scorer.choice)

    async def look(self) -> None:
        """Look for a newer snapshot once; a defect is logged and the current model goes on."""
        try:
            model = await asyncio.get_running_loop().run_in_executor(self.loader, self.watcher.look)
            if model is not None:
                self.swapped(model)
        except Exception:
            log.exception("looking for a snapshot failed; the current model goes on")
        self.compare()

    def compare(self) -> None:
        """Hold the numbers that were scored against those that the current model was trained on."""
        if self.live.current is None:
            return
        rows, began = self._watch.compare(self.live.current.scorer)
        self.metrics.compared(rows, began)
        for row in began:
            log.warning(
                "%s of %s is not what the model was trained on: trained %s, served %s; see GET /admin/moments",
                row.number, row.scenario, row.trained, row.served,
            )  # fmt: skip

    def moments(self) -> http_admin.Moments:
        """The numbers that were scored beside those trained on."""
        current = self.live.current
        return http_admin.Moments(
            current.version if current else None,
            self.config.divergence,
            [http_admin.Number(**_named(row)) for row in (self._watch.table(current.scorer) if current else ())],
        )

    async def follow_snapshots(self) -> None:
        """Look each `serving.poll_s`, for ever."""
        while True:
            await asyncio.sleep(self.config.serving.poll_s)
            await self.look()

    def warm_up(self) -> None:
        """Compile the kernels of the feature engine before the first request needs them."""
        begun = self._scoring.begin(self.decoder.decode(WARM_UP, "json"), 0, 0.0)
        wanted = begun.wanted
        layouts, schema = self._scoring.engine.compiled.layouts, self._scoring.engine.schema
        found = stores.Found(
            tuple(np.zeros((len(keys), layout.width)) for keys, layout in zip(wanted.cells, layouts, strict=True)),
            np.zeros((len(wanted.users), schema.user_bytes), np.uint8),
            np.zeros((len(wanted.items), schema.item_bytes), np.uint8),
        )
        self._scoring.engine.fill(wanted, found, -np.inf)
        self._scoring.engine.stamp(begun.lists)


@contextlib.asynccontextmanager
async def running(config: configuration.Config) -> AsyncIterator[Service]:
    """A service that is warm and follows the snapshots; neither the store nor a snapshot need be there."""
    scores = scoring.Scoring(config)
    store = redis_store.RedisStore(
        config.store.url,
        config.store.prefix,
        scores.engine.schema,
        access=credentials.store(config),
        timeout_s=STORE_TIMEOUT_S,
        support_key=meta_supports.KEY if config.support.mode == "meta_inputs" else supports.KEY,
    )
    service = Service(config, store, scores)
    service.warm_up()
    await service.look()
    following = asyncio.create_task(service.follow_snapshots())
    try:
        yield service
    finally:
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following
        await store.close()
        service.loader.shutdown(wait=False, cancel_futures=True)


def _named(row: divergence.Row) -> dict[str, Any]:
    return row._asdict() | {name: http_admin.Side(*side) for name, side in (("trained", row.trained), ("served", row.served))}


def _no_retrieval(why: str) -> Problem:
    hint = 'ask a deployment with model.name = "two_tower" and a category of source "item_id", see docs/retrieval.md'
    return Problem(404, "no_retrieval", f"nothing can be found here: {why}", hint)


def now_ms() -> int:
    """The wall clock in milliseconds."""
    return time.time_ns() // 1_000_000


def _yield_to_requests() -> None:
    """On Linux a thread has a priority of its own: loading must not take the processor from scoring."""
    with contextlib.suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOADER_NICE)
