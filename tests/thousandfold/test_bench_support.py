"""The comparison of the two kinds of support sets, on a small made-up log."""

import functools
import pathlib

import msgspec
import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from state import config as configuration
from tests.thousandfold import test_bench_meta
from thousandfold.bench import protocol, report, support

CONFIG = msgspec.structs.replace(
    test_bench_meta.CONFIG, support=msgspec.structs.replace(test_bench_meta.CONFIG.support, mode="meta_inputs", max_drift=1e6)
)


@functools.cache
def inputs() -> protocol.Inputs:
    return test_bench_meta.inputs(900)


@functools.cache
def measured(max_drift: float = 1e6) -> support.Quality:
    kept = msgspec.structs.replace(CONFIG.support, max_drift=max_drift)
    return support.measure(msgspec.structs.replace(CONFIG, support=kept), inputs(), 200)


def test_both_kinds_are_scored_on_the_same_rows_by_the_same_snapshots() -> None:
    found = measured()
    scored = {kind: np.isfinite(said) for kind, said in found.said.items()}
    assert scored["plain"].any()
    assert not scored["plain"][:100].any()
    for kind in ("features", "meta_inputs"):
        assert (scored[kind] == scored["plain"]).all()
        assert found.used[kind] > 0
        assert (found.said[kind] != found.said["plain"])[scored["plain"]].any()


def test_a_trunk_that_has_moved_too_far_leaves_no_support() -> None:
    strict = measured(1e-12)
    assert strict.stale > 0
    assert strict.used["meta_inputs"] < measured().used["meta_inputs"]
    assert strict.trunk.moved == pytest.approx(measured().trunk.moved)


def test_the_report_has_quality_latency_and_bytes_of_both() -> None:
    rows = support.rows_of(CONFIG, inputs(), measured(), support.latency(measured(), inputs(), 1))
    names = {r.id for r in rows}
    assert {
        f"support/{kind}/{what}" for kind in ("features", "meta_inputs") for what in ("auc", "ms", "bytes", "rows_used")
    } <= names
    assert all(r.value is not None for r in rows)


def test_a_log_without_any_support_is_refused() -> None:
    with pytest.raises(configuration.ConfigError, match="too short"):
        support.measure(CONFIG, inputs(), 10_000)


def test_the_command_takes_a_parquet_log_with_its_spec(tmp_path: pathlib.Path) -> None:
    spec, log, out, rows = tmp_path / "spec.toml", tmp_path / "log.parquet", tmp_path / "support.json", 2_000
    spec.write_text(test_bench_meta.SPEC.replace("[support]", '[support]\nmode = "meta_inputs"\nmax_drift = 1000000.0'))
    random = np.random.default_rng(0)
    frame = pl.DataFrame(
        {
            "time": np.arange(rows) * 1_000, "request": np.arange(rows), "user": random.integers(0, 30, rows),
            "item": random.integers(0, 20, rows), "scenario": ["home", "away"] * (rows // 2),
            "click": (random.random(rows) < 0.4).astype(int), "price": random.random(rows),
        }
    )  # fmt: skip
    frame.write_parquet(log)
    arguments = ["--data", str(log), "--limit", "2000", "--every", "500", "--rounds", "1", "--report", str(out)]
    done = CliRunner().invoke(support.app, [*arguments, "--spec", str(spec)])
    assert (done.exit_code, done.exception) == (0, None)
    assert {row.id for row in report.read(out).rows} >= {"support/features/auc", "support/meta_inputs/auc"}
    assert "needs --spec SPEC.toml" in str(CliRunner().invoke(support.app, arguments).exception)
