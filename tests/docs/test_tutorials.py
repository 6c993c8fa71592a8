"""The files of a tutorial are written as they stand there, and its commands run in that folder; what needs a broker is checked
as far as its options (tests/docs/test_commands.py)."""

import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PAGE = ROOT / "docs" / "tutorials" / "your-own-model.md"
FEWER = {"20000": "1000"}
"""Rows of the long measurement: here it only has to run."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """An empty folder with the files of the page."""
    made = tmp_path_factory.mktemp("tutorial")
    for name, text in re.findall(r"```\w+ file=(\S+)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        (made / name).write_text(text, encoding="utf-8")
    return made


def commands(kind: str) -> list[list[str]]:
    """The commands of the page's blocks `sh` + kind, without what is set for the shell."""
    blocks = re.findall(rf"```sh{kind}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    lines = [shlex.split(line) for block in blocks for line in block.splitlines()]
    return [words for words in lines if words[0] != "export"]


def run(folder: pathlib.Path, words: list[str]) -> str:
    named = {"thousandfold": [sys.executable, "-m", "thousandfold"], "python": [sys.executable]}[words[0]]
    path = {"PYTHONPATH": f"{ROOT}{os.pathsep}.", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    ran = subprocess.run(
        [*named, *words[1:]], capture_output=True, text=True, cwd=folder, timeout=300, check=False, env=os.environ | path
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_a_model_and_its_loss_take_about_forty_lines(folder: pathlib.Path) -> None:
    assert len((folder / "my_ranker.py").read_text(encoding="utf-8").splitlines()) <= 40


def test_the_commands_of_the_page_do_what_it_says(folder: pathlib.Path) -> None:
    check, tried = (run(folder, words) for words in commands(""))
    assert "model my_ranker:Crossed" in check
    said = re.search(r"loss ([\d.]+) at first, ([\d.]+) at last\nadapted on (\d+) rows: .* moved by ([\d.]+)", tried)
    assert said is not None, tried
    assert float(said[2]) < float(said[1])
    assert int(said[3]) == 16
    assert float(said[4]) > 0.0


def test_the_measurements_of_the_page_run(folder: pathlib.Path) -> None:
    quality, models = (run(folder, [FEWER.get(word, word) for word in words]) for words in commands(" long"))
    assert "unadapted" in quality
    assert "my_ranker" in quality
    assert "shared_bottom" in models
    assert "my_ranker" in models


def test_what_needs_a_broker_is_the_demo_alone() -> None:
    assert [words[:2] for words in commands(" live")] == [["thousandfold", "demo"]]
