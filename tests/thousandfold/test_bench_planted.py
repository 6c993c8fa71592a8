import functools
import pathlib

import pytest
from typer.testing import CliRunner

from state import config as configuration
from thousandfold import specs
from thousandfold.bench import meta, quality, report
from thousandfold.bench.meta import planted


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
    assert set(bars) == {"bar/planted/least_growth", "bar/planted/share_of_oracle"}
    assert bars["bar/planted/share_of_oracle"].passed


def test_where_nothing_is_planted_nothing_is_gained() -> None:
    found = world("unplanted")
    (bar,) = [r for r in planted.rows_of([found], "x") if r.target is not None]
    assert bar.id == "bar/unplanted/gain"
    assert bar.passed
    assert found.over_none("oracle", "").value > 0


def test_users_are_known_by_their_support_alone() -> None:
    for name, settings in planted.WORLDS.items():
        assert settings.new_user_share == 1.0, name
    columns = {c.source for c in configuration.load(specs.path("planted")).features.categories}
    assert "user_id" not in columns


def test_the_command_tells_of_both_worlds(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planted, "measure", lambda name, _rows, _seeds, _progress: world(name))
    options = ["--data", "planted", "--report", str(tmp_path / "r.json"), "--out", str(tmp_path)]
    result = CliRunner().invoke(meta.app, options)
    assert result.exit_code == 0, result.output
    found = {r.id for r in report.read(tmp_path / "r.json").rows}
    assert {"bar/unplanted/gain", "over_none_auc/planted/oracle/support/17-32"} <= found
    assert {f.name for f in tmp_path.glob("*.png")} == {"planted.png", "unplanted.png"}
