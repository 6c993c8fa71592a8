import io
import json
import math
import pathlib
import subprocess

import msgspec
import pytest
from rich.console import Console
from typer.testing import CliRunner

from state import config as configuration
from thousandfold import bench
from thousandfold.bench import every, report


def test_several_runs_give_their_mean_and_standard_error() -> None:
    row = report.row("auc/x", [0.7, 0.8, 0.9], "AUC", command="c")
    assert row.value == pytest.approx(0.8)
    assert row.stderr == pytest.approx(0.1 / math.sqrt(3))
    assert row.passed is None


@pytest.mark.parametrize(
    ("value", "better", "target", "peer", "passed"),
    [
        (0.8, "higher", 0.79, None, True),
        (0.78, "higher", 0.79, None, False),
        (0.79, "higher", 0.79, None, True),
        (12.0, "lower", 15.0, None, True),
        (0.8, "higher", 0.79, ("other", 0.81), False),
        (0.8, "higher", None, ("other", 0.8), False),
        (float("nan"), "higher", 0.1, None, False),
    ],
)
def test_a_figure_passes_at_its_target_and_above_its_peer(
    value: float, better: report.Better, target: float | None, peer: tuple[str, float] | None, passed: bool
) -> None:
    assert report.row("x", value, "u", better=better, target=target, peer=peer, command="c").passed is passed


def test_a_report_has_the_documented_form_and_reads_back(tmp_path: pathlib.Path) -> None:
    written = report.write(
        tmp_path / "r.json", [report.row("x", float("nan"), "u", command="c"), report.row("y", 2.0, "u", command="c")]
    )
    raw = json.loads((tmp_path / "r.json").read_text())
    assert set(raw) == {"machine", "rows"}
    assert set(raw["rows"][0]) == {"id", "value", "unit", "target", "better", "passed", "peer", "stderr", "command"}
    assert raw["rows"][0]["value"] is None
    assert report.read(tmp_path / "r.json") == written
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


def test_a_report_makes_its_folder_and_one_that_cannot_be_written_is_refused(tmp_path: pathlib.Path) -> None:
    report.write(tmp_path / "new" / "r.json", [])
    assert report.read(tmp_path / "new" / "r.json").rows == []
    for file in (tmp_path / "new", tmp_path / "new" / "r.json" / "x.json"):
        with pytest.raises(configuration.Refused, match="name a file that can be written"):
            report.write(file, [])
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["new", "r.json"]


def test_a_narrow_terminal_breaks_the_names_of_figures_and_does_not_cut_them_off() -> None:
    names = [f"adaptation/first_order/{steps}_steps/gradient" for steps in (1, 3)]
    rows = [report.row(name, 1.0, "times vmap(grad)", target=5.0, command="c") for name in names]
    console = Console(width=80, file=io.StringIO())
    console.print(report.table(rows, "adaptation"))
    assert isinstance(console.file, io.StringIO)
    lines = [line.split("│") for line in console.file.getvalue().splitlines() if line.startswith("│")]
    assert "".join(cells[1].strip() for cells in lines) == "".join(names)


def test_another_file_is_no_report(tmp_path: pathlib.Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(ValueError, match="no benchmark report"):
        report.read(tmp_path / "x.json")


def test_all_benchmarks_in_one_name_what_missed_and_what_had_no_peer(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [
        report.row(name, value, "x", target=4.0, command="c") for name, value in (("met", 5.0), ("short", 3.0), ("lonely", 1.0))
    ]
    made[-1] = msgspec.structs.replace(made[-1], value=None, unit="not installed", passed=None)

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        report.write(command[-1], made)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    ran = CliRunner().invoke(every.app, ["--only", "training", "--report", str(tmp_path / "all.json")], env={"COLUMNS": "200"})
    assert ran.exit_code == 0, ran.output
    assert "1 passed; 1 missed: short; 1 not measured: lonely" in ran.output
    assert "not installed" in ran.output


def test_an_unknown_benchmark_is_named_with_those_there_are() -> None:
    with pytest.raises(KeyError, match=r"there are quality, models, .*streams, .*serving, system, all"):
        bench.module("speed")


@pytest.mark.parametrize("given", [["--report", "/tmp/x.json"], ["--report=/tmp/x.json"]])
def test_the_command_of_a_row_can_be_typed_anywhere(given: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["thousandfold", "bench", "quality", *given, "--seeds", "1"])
    assert report.command_line() == "thousandfold bench quality --seeds 1"
