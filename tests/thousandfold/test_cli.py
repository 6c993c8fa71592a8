import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from state import config as configuration
from thousandfold import cli, run

ROOT = pathlib.Path(configuration.__file__).parent.parent
Make = Callable[..., Any]


def thousandfold(*arguments: str, cwd: pathlib.Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "200", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "thousandfold", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=60, check=False)


def test_help_names_every_command_and_imports_none_of_them() -> None:
    code = (
        "import sys, json\nfrom thousandfold import cli\n"
        "try: cli.app(['--help'])\nexcept SystemExit: pass\n"
        "print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert all(f" {name} " in ran.stdout for name in cli.COMMANDS)
    heavy = {"torch", "faust", "numba", "confluent_kafka", "polars", "river"} | {row.module for row in cli.COMMANDS.values()}
    assert heavy & set(json.loads(ran.stderr)) == set()


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_every_command_of_the_table_exists_and_has_help(name: str) -> None:
    ran = thousandfold(name, "--help")
    assert "Usage" in ran.stdout, ran.stderr
    assert f"thousandfold {name}" in ran.stdout


def test_a_wrong_configuration_is_one_line_and_exit_code_2(tmp_path: pathlib.Path) -> None:
    (tmp_path / "bad.toml").write_text("[kafka]\npartition = 3\n")
    ran = thousandfold("config", "check", str(tmp_path / "bad.toml"))
    assert ran.returncode == 2
    assert ran.stdout == ""
    [line] = ran.stderr.splitlines()
    assert line.startswith(f"thousandfold: {tmp_path}/bad.toml: kafka.partition: unknown key; allowed: ")


def test_wrong_topics_are_one_line_and_exit_code_2(broker: Any, make_config: Make) -> None:
    path = make_config(kafka={"bootstrap": broker.bootstrap}).path
    ran = thousandfold("topics", "check", "--config", str(path))
    assert (ran.returncode, len(ran.stderr.splitlines())) == (2, 1)
    assert "run: thousandfold topics create" in ran.stderr
    assert thousandfold("topics", "create", "--config", str(path)).stdout.count("created ") == 10
    assert thousandfold("topics", "check", "--config", str(path)).returncode == 0


def test_a_defect_of_ours_is_no_one_liner(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "app", broken)
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_an_unknown_command_is_named() -> None:
    ran = thousandfold("deom")
    assert ran.returncode == 2
    assert "deom" in ran.stderr


def test_run_becomes_the_process_with_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr(run.os, "execv", lambda _path, argv: called.append(argv))  # type: ignore[attr-defined]
    run.app(["streams", "--config", "a.toml", "--instance", "w1"], standalone_mode=False)
    assert called == [[sys.executable, "-m", "streams", "--config", "a.toml", "--instance", "w1"]]
