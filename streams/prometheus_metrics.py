"""What a stream worker shows to Prometheus (docs/architecture.md names every metric)."""

import os

from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics, start_http_server

HOST_VARIABLE = "THOUSANDFOLD_METRICS_HOST"


class Metrics:
    """The metrics of one worker, in a registry of their own."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.events = self._counter("events", "Events by stage and kind", "stage", "kind")
        self.dead_letters = self._counter("dead_letters", "Messages put into dead-letters", "stage", "reason")
        self.late_actions = self._counter("late_actions", "Actions outside the window of their list")
        self.source_rows = self._counter("source_rows", "Rows that carried an attribute which the feature spec reads", "source")
        self.bad_propensities = self._counter(
            "bad_propensities", "Rows whose propensity was not above 0 and at most 1, and was left out"
        )
        self.duplicates = self._counter("duplicates", "Repeated input that was recognised", "stage")
        self.foreign = self._counter("foreign_supports", "Support sets of another feature spec, which start empty")
        self.trimmed = self._counter("trimmed_support_rows", "Support rows left out of an episode that was full")
        self.open_lists = self._gauge("open_lists", "Lists whose window has not passed", "partition")
        self.watermark = self._gauge("watermark_ms", "Event time up to which input is complete", "partition")
        self.lag = self._gauge("lag_messages", "Messages in the topic that were not taken yet", "topic", "partition")

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"thousandfold_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"thousandfold_{name}", text, labels, registry=self.registry)


def serve(metrics: Metrics, port: int) -> None:
    """Serve the metrics on loopback, or on the address that THOUSANDFOLD_METRICS_HOST names; port 0 serves nothing.

    Raises:
        OSError: the port is taken.
    """
    if port:
        start_http_server(port, os.environ.get(HOST_VARIABLE, "127.0.0.1"), registry=metrics.registry)
