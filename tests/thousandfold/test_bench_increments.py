"""Quality against the interval between updates, on a small made-up log."""

import functools
import itertools
import pathlib

import numpy as np
import pytest
from typer.testing import CliRunner

from learner import step
from tests.thousandfold import test_bench_meta
from thousandfold.bench import increments, logs, protocol, quality, report

CONFIG = test_bench_meta.CONFIG


@functools.cache
def inputs(flipped: bool = False) -> protocol.Inputs:
    """Lists at times of their own; the labels of the second half may be turned round."""
    d = test_bench_meta.inputs(1_000)
    ts = d.ts[0] + 10_000 * np.arange(len(d.ts))
    label = np.where((np.arange(d.rows) >= d.start[half(d)])[:, None], 1 - d.label, d.label) if flipped else d.label
    return d._replace(ts=ts, known=protocol.known_lists(ts, d.start, protocol.Lag()), label=label)


def half(d: protocol.Inputs) -> int:
    """The first list of a block of 100 rows, near the middle."""
    return next(a for a, _ in increments.bounds(d, 0, "100", 100) if d.start[a] >= d.rows / 2)


@functools.cache
def measured(*intervals: str, flipped: bool = False) -> dict[str, increments.Passed]:
    d = inputs(flipped)
    return increments.measure(CONFIG, d, half(d), intervals, [0])


def test_updates_come_after_so_many_rows_or_so_much_event_time() -> None:
    d = inputs()
    for interval in ("100", "1m", increments.NEVER):
        found = increments.bounds(d, 7, interval, 100)
        assert found[0][0] == 7
        assert found[-1][1] == len(d.ts)
        assert all(a[1] == b[0] for a, b in itertools.pairwise(found))
    assert all(d.start[z] - d.start[a] <= 100 for a, z in increments.bounds(d, 7, "100", 9))
    assert {z - a for a, z in increments.bounds(d, 7, "1m", 9)[:-1]} == {6}
    later = d._replace(ts=np.where(np.arange(len(d.ts)) < 20, d.ts, d.ts + 86_400_000))
    assert increments.bounds(later, 7, "1d", 9) == [(7, 20), (20, len(d.ts))]
    for wrong in ("0", "soon", "1.5h", "-3", "2w"):
        with pytest.raises(logs.LogError, match="give rows"):
            increments.bounds(d, 0, wrong, 100)


def test_at_the_interval_of_the_blocks_it_is_the_prequential_protocol() -> None:
    d = inputs()
    low = int(d.start[half(d)])
    whole, found = protocol.run(CONFIG, d), measured("100", increments.NEVER)["100"]
    for variant in increments.VARIANTS:
        (run,) = found.scores[variant]
        assert np.array_equal(run[low:], getattr(whole, variant)[low:])
        assert np.isnan(run[:low]).all()
    assert found.updates == len(increments.bounds(d, half(d), "100", 100)) - 1


def test_a_model_that_is_never_updated_stays_the_base_and_adapts_to_support_that_is_fresh() -> None:
    d, low = inputs(), int(inputs().start[half(inputs())])
    one, other = (measured("100", increments.NEVER, flipped=flipped)[increments.NEVER] for flipped in (False, True))
    assert one.updates == 0
    assert np.array_equal(one.scores["unadapted"][0], other.scores["unadapted"][0], equal_nan=True)
    assert not np.array_equal(one.scores["adapted"][0][low:], other.scores["adapted"][0][low:])
    base = step.Trainer(quality.override(CONFIG, "learner.seed", 0))
    protocol.run(CONFIG, d.head(low), trainer=base)
    again = protocol.run(CONFIG, d, trainer=base, schedule=protocol.Schedule([(half(d), len(d.ts))], half(d)))
    assert np.allclose(again.unadapted[low:], one.scores["unadapted"][0][low:], atol=1e-6)


def test_differences_are_to_the_last_interval_on_the_same_rows() -> None:
    d = inputs()
    told = increments.gains(d, half(d), 0, measured("100", increments.NEVER))
    assert [g.interval for g in told] == ["100", increments.NEVER]
    auc = [g.figures["adapted"][0].auc for g in told]
    assert told[0].over.value == pytest.approx(auc[0] - auc[1])
    assert told[0].over.stderr > 0
    assert told[1].over == (0.0, 0.0)
    assert told[0].figures["adapted"][0].rows == d.rows - d.start[half(d)]


def test_the_command_prints_a_line_for_every_interval_and_writes_them(tmp_path: pathlib.Path) -> None:
    (tmp_path / "spec.toml").write_text(test_bench_meta.SPEC)
    options = ["--data", "simulate", "--spec", str(tmp_path / "spec.toml"), "--limit", "1000", "--seeds", "1"]
    done = CliRunner().invoke(increments.app, [*options, "--intervals", "100,1h,never", "--report", str(tmp_path / "r.json")])
    assert (done.exit_code, done.exception) == (0, None)
    assert "100 rows" in done.stdout
    found = {r.id: r for r in report.read(tmp_path / "r.json").rows}
    assert found["increments/never/updates"].value == 0
    assert found["increments/never/auc_over_never"].value == 0
    assert {"increments/1h/gauc/unadapted", "increments/100/logloss/adapted"} <= set(found)
    wrong = CliRunner().invoke(increments.app, [*options, "--intervals", "soon"])
    assert "--intervals: 'soon' is none" in str(wrong.exception)
    assert isinstance(wrong.exception, logs.LogError)
