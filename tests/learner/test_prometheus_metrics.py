"""What Prometheus sees of the learner."""

import socket
import urllib.error
import urllib.request
from collections import Counter

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from learner import prometheus_metrics
from learner.explored import Explored
from learner.policy import Judged
from learner.prequential import Gain, Quality
from learner.reports import Counts, Report
from models.engines import Choice
from models.scenario_slots import Room

NAN = float("nan")
REPORT = Report(
    qualities=(
        Quality("home", "click", "adapted", "cumulative", 10, 0.75, 0.7, 0.5, 1.1),
        Quality("home", "click", "adapted", "recent", 5, NAN, NAN, 0.4, NAN),
        Quality("home", "click", "river", "cumulative", 0, NAN, NAN, NAN, NAN),
    ),
    explored=(
        Explored("home", "click", "adapted", "cumulative", 9, 7.5, 0.7, 0.2, 0.3),
        Explored("home", "click", "river", "cumulative", 9, 7.5, 0.6, 0.2, 0.3),
        Explored("home", "click", "adapted", "recent", 0, NAN, NAN, NAN, NAN),
    ),
    gains=(Gain("home", "click", 0.01, 0.002, 0.03),),
    rows={"home": 10},
    counts=Counts(
        3,
        Counter(schema=2),
        Counter({"loss is not finite": 1}),
        Counter(home=4),
        {"step": 1.5},
        Counter(clipped=5),
        foreign_supports=6,
    ),
    step=7,
    trained_rows=10,
    snapshot=(6, 1234.5),
    snapshot_failures=1,
    lag={("episodes", 0): 9},
    embedding_rows=42,
    meta={"*": "on", "home": "fine_tune_only", "search": "auto"},
    auto={"search": Judged(True, 1.5, 2.0, 3)},
    room=Room(16, 5, 12),
    engine=Choice("autograd", "meta.inner_decay"),
)


def scrape(report: Report) -> list[str]:
    registry = CollectorRegistry()
    registry.register(prometheus_metrics.ReportCollector(lambda: report, baseline_share=0.5, lost=8, refused=2))
    return generate_latest(registry).decode().splitlines()


def test_every_figure_of_the_report_is_exported_under_its_documented_name() -> None:
    lines = scrape(REPORT)
    labels = 'objective="click",scenario="home",variant="adapted",window='
    for line in (
        f'thousandfold_auc{{{labels}"cumulative"}} 0.75',
        f'thousandfold_gauc{{{labels}"cumulative"}} 0.7',
        f'thousandfold_logloss{{{labels}"recent"}} 0.4',
        f'thousandfold_calibration{{{labels}"cumulative"}} 1.1',
        'thousandfold_logloss_gain{objective="click",scenario="home"} 0.01',
        'thousandfold_rows_total{scenario="home"} 10.0',
        "thousandfold_steps_total 7.0",
        'thousandfold_skipped_steps_total{reason="loss is not finite"} 1.0',
        'thousandfold_duplicates_total{stage="learner"} 3.0',
        'thousandfold_dead_letters_total{reason="schema",stage="learner"} 2.0',
        'thousandfold_drift_total{scenario="home"} 4.0',
        "thousandfold_snapshot_step 6.0",
        "thousandfold_snapshot_created_seconds 1234.5",
        'thousandfold_lag_messages{partition="0",topic="episodes"} 9.0',
        "thousandfold_embedding_rows 42.0",
        "thousandfold_baseline_share 0.5",
        "thousandfold_lost_messages_total 8.0",
        'thousandfold_meta_mode{mode="on",scenario="*"} 1.0',
        'thousandfold_meta_mode{mode="fine_tune_only",scenario="home"} 1.0',
        'thousandfold_meta_auto{scenario="search"} 1.0',
        'thousandfold_meta_auto_evidence{scenario="search"} 1.5',
        'thousandfold_meta_auto_evidence_wanted{scenario="search"} 2.0',
        'thousandfold_meta_auto_changes_total{scenario="search"} 3.0',
        "thousandfold_snapshots_refused_total 2.0",
        'thousandfold_engine_info{engine="autograd",reason="meta.inner_decay"} 1.0',
        "thousandfold_foreign_supports_total 6.0",
        'thousandfold_propensity_rows_total{use="clipped"} 5.0',
        'thousandfold_ips_auc{objective="click",scenario="home",variant="adapted",window="cumulative"} 0.7',
        'thousandfold_ips_auc{objective="click",scenario="home",variant="river",window="cumulative"} 0.6',
        'thousandfold_ips_mean_label{objective="click",scenario="home",window="cumulative"} 0.2',
        'thousandfold_shown_mean_label{objective="click",scenario="home",window="cumulative"} 0.3',
        'thousandfold_ips_effective_rows{objective="click",scenario="home",window="cumulative"} 7.5',
        'thousandfold_ips_rows{objective="click",scenario="home",window="cumulative"} 9.0',
        "thousandfold_scenario_slots 16.0",
        "thousandfold_scenario_slots_used 5.0",
        "thousandfold_rows_without_slot_total 12.0",
    ):
        assert line in lines


def test_a_figure_that_does_not_exist_is_left_out() -> None:
    lines = scrape(REPORT)
    assert not any(line.startswith("thousandfold_auc{") and 'window="recent"' in line for line in lines)
    assert not any(line.startswith("thousandfold_auc{") and 'variant="river"' in line for line in lines)
    assert not any(line.startswith(("thousandfold_ips_auc", "thousandfold_ips_mean")) and "recent" in line for line in lines)


def test_a_learner_that_has_reported_nothing_yet_can_be_scraped() -> None:
    assert "thousandfold_steps_total 0.0" in scrape(Report())


def test_the_server_answers_until_it_is_stopped() -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        free_port: int = one.getsockname()[1]
    collector = prometheus_metrics.ReportCollector(lambda: REPORT, 1.0, 0, 0)
    stop = prometheus_metrics.serve(collector, free_port, "127.0.0.1")
    url = f"http://127.0.0.1:{free_port}/metrics"
    with urllib.request.urlopen(url, timeout=5) as reply:
        assert b"thousandfold_steps_total 7.0" in reply.read()
    stop()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url, timeout=5)


def test_port_0_serves_nothing() -> None:
    prometheus_metrics.serve(prometheus_metrics.ReportCollector(lambda: REPORT, 1.0, 0, 0), 0, "127.0.0.1")()
