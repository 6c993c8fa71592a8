"""What Prometheus sees of the scoring service."""

from collections.abc import Iterable
from typing import Final

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from serving.divergence import Row
from serving.live import REMEMBERED, Model
from serving.scoring import Ignored

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 1.0)

PASSES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128, 256)


class Metrics:
    """Counters of one process, on a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("thousandfold_requests", "scoring requests", ["status"], registry=self.registry)
        self.seconds = Histogram("thousandfold_request_seconds", "whole body to reply", buckets=SECONDS, registry=self.registry)
        self.searches = Counter("thousandfold_retrievals", "requests for items", ["status"], registry=self.registry)
        self.search_seconds = Histogram(
            "thousandfold_retrieve_seconds", "whole body to reply", buckets=SECONDS, registry=self.registry
        )
        self.items = Gauge("thousandfold_retrievable_items", "items that the model that answers can find", registry=self.registry)
        self.store = Histogram("thousandfold_store_seconds", "one read from the store", buckets=SECONDS, registry=self.registry)
        self.plain = Counter("thousandfold_plain", "replies of the plain tower", ["reason"], registry=self.registry)
        self.candidates = Counter("thousandfold_candidates", "candidates scored", registry=self.registry)
        self.merges = Histogram(
            "thousandfold_merged_requests", "requests scored in one pass", buckets=PASSES, registry=self.registry
        )
        self.failed_merges = Counter(
            "thousandfold_failed_merges", "passes that failed, whose requests were then scored one by one", registry=self.registry
        )
        self.explored = Counter("thousandfold_explored", "replies that put a new item forward", registry=self.registry)
        self.swaps = Counter("thousandfold_swaps", "snapshots swapped in", registry=self.registry)
        self.refused = Counter("thousandfold_snapshots_refused", "snapshots that must not be used", registry=self.registry)
        self.foreign = Counter("thousandfold_foreign_supports", "support sets of another feature spec", registry=self.registry)
        self.future = Counter(
            "thousandfold_future_support_rows", "support rows refused: not before the request", registry=self.registry
        )
        self.stale = Counter(
            "thousandfold_stale_support_rows", "meta inputs of a trunk that is too far away", registry=self.registry
        )
        self.diverged = Counter("thousandfold_diverged_adaptations", "adaptations held or taken back", registry=self.registry)
        self.step = Gauge("thousandfold_model_step", "training step of the model that answers", registry=self.registry)
        self.created = Gauge("thousandfold_model_created_seconds", "when the model that answers was made", registry=self.registry)
        self.engine = Gauge(
            "thousandfold_engine_info",
            "1: what scores, and why",
            ["engine", "reason"],
            registry=self.registry,
        )
        self.first_score = Gauge(
            "thousandfold_version_first_score_seconds",
            f"when a version first scored, of the last {REMEMBERED}",
            ["version"],
            registry=self.registry,
        )
        self.divergence = Gauge(
            "thousandfold_feature_divergence",
            "how far serving's numbers are from those trained on: 1 is the threshold, 0 until there is enough of both",
            ["number", "scenario"],
            registry=self.registry,
        )
        self.alarms = Counter(
            "thousandfold_feature_alarms", "divergences that began", ["number", "scenario"], registry=self.registry
        )
        self._first: list[str] = []

    def ignored(self, support: Ignored) -> None:
        """Support that a request had and did not use."""
        self.foreign.inc(support.foreign)
        self.future.inc(support.future)
        self.stale.inc(support.stale)
        self.diverged.inc(support.diverged)

    def swapped(self, model: Model) -> None:
        """A model answers from now on."""
        self.swaps.inc()
        self.step.set(model.step)
        self.created.set(model.created_ms / 1000)
        self.engine.clear()
        self.engine.labels(*model.scorer.choice).set(1)

    def first_scored(self, version: str, at_ms: int) -> None:
        """A version answered for the first time; the oldest of more than REMEMBERED is dropped."""
        self.first_score.labels(version).set(at_ms / 1000)
        self._first.append(version)
        while len(self._first) > REMEMBERED:
            self.first_score.remove(self._first.pop(0))

    def compared(self, rows: Iterable[Row], began: Iterable[Row]) -> None:
        """What a comparison of the numbers found, and the alarms that began with it."""
        for row in rows:
            self.divergence.labels(row.number, row.scenario).set(row.worst)
        for row in began:
            self.alarms.labels(row.number, row.scenario).inc()

    def text(self) -> bytes:
        """The exposition of every metric."""
        return prometheus_client.generate_latest(self.registry)
