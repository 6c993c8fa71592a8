"""The comparison of the two kinds of support sets, on a small made-up log."""

import functools

import msgspec
import numpy as np
import pytest

from state import config as configuration
from tests.thousandfold import test_bench_meta
from thousandfold.bench import protocol, support

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
