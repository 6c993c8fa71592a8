import functools
import pathlib

import numpy as np
import pytest
from typer.testing import CliRunner

from state import config as configuration
from thousandfold import specs
from thousandfold.bench import meta, quality, report
from thousandfold.bench.meta import decisions, planted


@functools.cache
def world(name: str) -> planted.World:
    return planted.measure(name, 12_000, 1, quality.Progress())


def test_what_is_planted_is_gained_more_with_more_support_and_the_oracle_is_above() -> None:
    found = world("planted")
    few, many = (found.over_none("fomaml", f"/support/{rows}") for rows in ("1", "17-32"))
    assert many.value > few.value + 0.02
    assert many.value > 10 * many.stderr
    assert 0.4 < found.share("fomaml", "/support/17-32") < 1
    bars = {r.id: r for r in planted.rows_of([found], "x") if r.target is not None}
    assert set(bars) == {"bar/planted/least_growth", "bar/planted/share_of_oracle", "bar/auto/planted/ends_on"}
    assert bars["bar/planted/share_of_oracle"].passed
    assert bars["bar/auto/planted/ends_on"].passed


def test_where_nothing_is_planted_nothing_is_gained() -> None:
    found = world("unplanted")
    rows = {r.id: r for r in planted.rows_of([found], "x")}
    bars = {name: r.passed for name, r in rows.items() if r.target is not None}
    assert bars == {"bar/unplanted/gain": True, "bar/auto/unplanted/adapted": True}
    assert rows["auto/unplanted/ends_on_after_on"].value == 0.0
    assert found.over_none("oracle", "").value > 0


def test_what_is_said_under_auto_is_the_plain_tower_until_the_policy_turns_it_on() -> None:
    planted_world, other = world("planted"), world("unplanted")
    (found,), (never,), (stopped,) = planted_world.auto, other.auto, other.stopped
    assert found.on
    assert 0 < found.first_change <= found.lists - found.adapted < found.lists
    assert (never.adapted, never.on, np.isnan(never.first_change)) == (0, False, True)
    assert not stopped.on
    assert stopped.first_change <= stopped.adapted < stopped.lists
    said, inert = planted_world.found.runs[decisions.AUTO], other.found.runs[decisions.AUTO]
    differs = np.flatnonzero(said.adapted[0] != said.unadapted[0])
    assert len(differs) > 0
    assert differs[0] > found.first_change
    np.testing.assert_array_equal(inert.adapted[0], inert.unadapted[0])
    assert planted_world.over_none(decisions.AUTO, "").value > 0.02


def test_users_are_known_by_their_support_alone() -> None:
    for name, settings in planted.WORLDS.items():
        assert settings.new_user_share == 1.0, name
    columns = {c.source for c in configuration.load(specs.path("planted")).features.categories}
    assert "user_id" not in columns


def test_the_command_tells_of_both_worlds(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planted, "measure", lambda name, _rows, _seeds, _progress, _store: world(name))
    options = ["--data", "planted", "--report", str(tmp_path / "r.json"), "--out", str(tmp_path)]
    result = CliRunner().invoke(meta.app, options)
    assert result.exit_code == 0, result.output
    found = {r.id for r in report.read(tmp_path / "r.json").rows}
    assert {"bar/unplanted/gain", "over_none_auc/planted/oracle/support/17-32"} <= found
    assert {f.name for f in tmp_path.glob("*.png")} == {"planted.png", "unplanted.png"}
