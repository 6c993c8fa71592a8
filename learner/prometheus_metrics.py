"""The learner's newest report as Prometheus metrics. Nothing is computed at a scrape."""

import math
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from learner.reports import Report

PREFIX = "thousandfold_"
_FIGURES = {
    "auc": "Prequential AUC, ties half, 1,000 buckets",
    "gauc": "AUC within each user, weighted by rows",
    "logloss": "Mean logloss",
    "calibration": "Sum of predictions over sum of labels",
    "accuracy": "Share of rows whose likeliest class is theirs",
    "rmse": "Root of the mean squared error of a regression",
}


class ReportCollector(Collector):
    """Turns a report into metric families."""

    def __init__(self, report: Callable[[], Report], baseline_share: float, lost: int, refused: int) -> None:
        """`lost` messages were gone and `refused` snapshots were damaged when this process started."""
        self._report, self._baseline_share, self._lost, self._refused = report, baseline_share, lost, refused

    def describe(self) -> Iterable[Metric]:
        """Nothing: names are known at a scrape only, which keeps registration from running one."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """All families of the newest report."""
        report = self._report()
        yield from _qualities(report)
        yield from _explored(report)
        yield from _counters(report)
        for name, help_text, value in (
            ("snapshot_step", "Step of the newest snapshot", report.snapshot[0]),
            ("snapshot_created_seconds", "Creation of the newest snapshot, seconds since 1970", report.snapshot[1]),
            ("embedding_rows", "Ids with a row of their own", report.embedding_rows),
            ("trained_rows", "Rows that the parameters have been trained on", report.trained_rows),
            ("scenario_slots", "Scenarios that can have parameters of their own", report.room.slots),
            ("scenario_slots_used", "Scenarios that have them", report.room.used),
            ("baseline_share", "Share of the users on which the river baseline runs", self._baseline_share),
        ):
            yield GaugeMetricFamily(PREFIX + name, help_text, value)
        yield CounterMetricFamily(PREFIX + "lost_messages", "Messages that retention removed before they were read", self._lost)
        yield CounterMetricFamily(PREFIX + "snapshots_refused", "Damaged snapshots passed over at the start", self._refused)
        lag = GaugeMetricFamily(PREFIX + "lag_messages", "Messages not fetched yet", labels=("topic", "partition"))
        for (topic, partition), behind in report.lag.items():
            lag.add_metric((topic, str(partition)), behind)
        yield lag
        known = GaugeMetricFamily(PREFIX + "items", "Items that snapshots tell of; unnamed ones are not found", labels=("state",))
        for state, count in report.items.items():
            known.add_metric((state,), count)
        yield known
        meta = GaugeMetricFamily(PREFIX + "meta_mode", "1: in force; * is all other scenarios", labels=("scenario", "mode"))
        for scenario, mode in report.meta.items():
            meta.add_metric((scenario, mode), 1)
        yield meta
        yield from _auto(report)
        engine = GaugeMetricFamily(PREFIX + "engine_info", "1: what runs the steps, and why", labels=("engine", "reason"))
        if report.engine is not None:
            engine.add_metric(report.engine, 1)
        yield engine


def _qualities(report: Report) -> Iterable[Metric]:
    labels = ("scenario", "objective", "variant", "window")
    for figure, help_text in _FIGURES.items():
        family = GaugeMetricFamily(PREFIX + figure, help_text, labels=labels)
        for q in report.qualities:
            value = getattr(q, figure)
            if q.rows and not math.isnan(value):
                family.add_metric((q.scenario, q.objective, q.variant, q.window), value)
        yield family
    gain = GaugeMetricFamily(PREFIX + "logloss_gain", "Logloss unadapted less adapted, same rows", labels=labels[:2])
    error = GaugeMetricFamily(PREFIX + "logloss_gain_stderr", "Standard error of logloss_gain, lists as units", labels=labels[:2])
    for g in report.gains:
        if not math.isnan(g.logloss):
            gain.add_metric((g.scenario, g.objective), g.logloss)
            error.add_metric((g.scenario, g.objective), g.stderr)
    yield gain
    yield error


def _explored(report: Report) -> Iterable[Metric]:
    labels = ("scenario", "objective", "variant", "window")
    area = GaugeMetricFamily(PREFIX + "ips_auc", "AUC with rows weighted by clipped inverse propensities", labels=labels)
    for e in report.explored:
        if not math.isnan(e.auc):
            area.add_metric(e[:4], e.auc)
    yield area
    told = [e for e in report.explored if e.variant == "adapted"]
    for name, help_text, values in (
        (
            "ips_mean_label",
            "Mean label, weighted and normalised likewise: of all that could be shown",
            [e.mean_label for e in told],
        ),
        ("shown_mean_label", "Mean label of the same rows as they were shown", [e.shown for e in told]),
        ("ips_rows", "Rows of a known propensity in scenarios that explore", [float(e.rows) for e in told]),
        ("ips_effective_rows", "Rows of equal weight that would tell as much", [e.effective for e in told]),
    ):
        family = GaugeMetricFamily(PREFIX + name, help_text, labels=("scenario", "objective", "window"))
        for e, value in zip(told, values, strict=True):
            if not math.isnan(value):
                family.add_metric((e.scenario, e.objective, e.window), value)
        yield family


def _auto(report: Report) -> Iterable[Metric]:
    label = ("scenario",)
    on = GaugeMetricFamily(PREFIX + "meta_auto", "1: a scenario that is auto is adapted now", labels=label)
    found = GaugeMetricFamily(PREFIX + "meta_auto_evidence", "log10 of the e-value of a gain", labels=label)
    wanted = GaugeMetricFamily(PREFIX + "meta_auto_evidence_wanted", "where it turns on, or stays on", labels=label)
    changes = CounterMetricFamily(PREFIX + "meta_auto_changes", "Times that a scenario was turned on or off", labels=label)
    for scenario, judged in report.auto.items():
        on.add_metric((scenario,), float(judged.on))
        found.add_metric((scenario,), judged.evidence)
        wanted.add_metric((scenario,), judged.wanted)
        changes.add_metric((scenario,), judged.changes)
    yield from (on, found, wanted, changes)


def _counters(report: Report) -> Iterable[Metric]:
    counts = report.counts
    for name, help_text, count in (
        ("steps", "Steps planned, skipped ones included", report.step),
        ("snapshot_failures", "Snapshots that could not be written", report.snapshot_failures),
        ("diverged_adaptations", "Lists that kept the shared tower as their adaptation diverged", counts.diverged),
        ("rows_without_slot", "Rows trained on whose scenario found all slots taken", report.room.rows_without),
        ("meta_input_rows", "Rows whose meta inputs were kept for serving", counts.support_rows),
        ("foreign_supports", "Sets of meta inputs of another spec or model, which start empty", counts.foreign_supports),
        ("meta_input_failures", "Calls of the store for them that were not answered", counts.support_failures),
    ):
        yield CounterMetricFamily(PREFIX + name, help_text, count)
    for name, help_text, label, found in (
        ("rows", "Rows scored and measured", "scenario", report.rows),
        ("skipped_steps", "Steps that a guard refused", "reason", counts.skipped_steps),
        ("propensity_rows", "Rows with a logged propensity: weighted by it, clipped, or unused", "use", counts.propensities),
        ("drift", "Changes of the logloss that ADWIN found", "scenario", counts.drift),
        ("loop_seconds", "Seconds of the loop, by stage", "stage", counts.seconds),
        ("duplicates", "Lists skipped because they were trained already", "stage", {"learner": counts.duplicates}),
    ):
        family = CounterMetricFamily(PREFIX + name, help_text, labels=(label,))
        for key, value in found.items():
            family.add_metric((key,), value)
        yield family
    dead = CounterMetricFamily(PREFIX + "dead_letters", "Messages sent to dead-letters", labels=("stage", "reason"))
    for reason, count in counts.dead_letters.items():
        dead.add_metric(("learner", reason), count)
    yield dead


def serve(collector: Collector, port: int, host: str) -> Callable[[], None]:
    """Answer scrapes at `host:port` from a thread; returns how to stop. A port of 0 serves nothing."""
    if port == 0:
        return lambda: None
    registry = CollectorRegistry()
    registry.register(collector)
    server, thread = start_http_server(port, host, registry)

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return stop
