"""Every command that the documentation names exists with the options it is shown with, and those that need nothing are run."""

import pathlib
import re
import shlex
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from thousandfold import cli

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
WORD = r"[^`\n]*"
PLACEHOLDERS = {"FILE": "examples/ml1m.toml", "SPEC.toml": "examples/ml1m.toml"}


def found(pattern: str) -> list[tuple[str, str]]:
    """(page, command) of everything in code spans and code blocks that matches."""
    out = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        spans = re.findall(r"`([^`\n]+)`", text)
        lines = [
            line.strip()
            for block in re.findall(r"```(?:sh|bash|console|)\n(.*?)```", text, re.DOTALL)
            for line in block.splitlines()
        ]
        lines += [line.strip() for line in text.splitlines() if line.startswith("    ")]
        for code in (*spans, *lines):
            command = re.split(r"\s{2,}|\s#\s", code.removeprefix("$ "))[0]
            if re.match(pattern, command):
                out.append((page.name, command))
    return sorted(set(out))


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)


def help_of(path: list[str]) -> tuple[int, str]:
    """Exit code and text of `--help`; `run` replaces its process by what it runs, so it gets one of its own."""
    if path[0] == "run":
        apart = run(sys.executable, "-m", "thousandfold", *path, "--help")
        return apart.returncode, apart.stdout
    inside = CliRunner().invoke(cli.app, [*path, "--help"], env={"COLUMNS": "200"})
    return inside.exit_code, inside.stdout


COMMANDS = found(r"thousandfold [a-z]")
TARGETS = found(r"make [a-z0-9]+")


def test_the_pages_name_commands() -> None:
    assert len(COMMANDS) > 10
    assert len(TARGETS) > 3


@pytest.mark.parametrize("command", sorted({c for _, c in COMMANDS}))
def test_a_documented_command_exists_with_its_options(command: str) -> None:
    words = shlex.split(re.sub(r"\[|\]|\.\.\.|,", " ", command))[1:]
    path, options = [], [w.partition("=")[0] for w in words if w.startswith("--")]
    for word in words:
        if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*(\|[a-z0-9]+)*", word):
            break
        path.append(word)
    named = [names.split("|") for names in path]
    code, help_text = 1, ""
    for depth in range(len(named), 0, -1):
        code, help_text = help_of([names[0] for names in named[:depth]])
        if code == 0:
            break
    assert code == 0, f"{command}: no such command"
    missing = [o for o in options if o not in help_text and o != "--help"]
    assert not missing, f"{command}: {missing} are no options of it"


@pytest.mark.parametrize("target", sorted({c.split()[1] for _, c in TARGETS}))
def test_a_documented_make_target_exists(target: str) -> None:
    assert run("make", "-n", target).returncode == 0


@pytest.mark.parametrize("command", ["config check FILE", "config show FILE", "--help", "--version", "bench --help"])
def test_a_command_that_needs_nothing_runs(command: str) -> None:
    words = [PLACEHOLDERS.get(word, word) for word in shlex.split(command)]
    ran = run(sys.executable, "-m", "thousandfold", *words)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip()


def test_files_that_the_readme_links_to_exist() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_functions_in_the_life_of_an_impression_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"\[`([\w/]+\.py)(?::([\w.]+))?`\]\(([^)]+)\)", text)
    assert len(named) > 8
    for _, function, path in named:
        source = (ROOT / path).read_text(encoding="utf-8")
        for name in function.split(".") if function else []:
            assert re.search(rf"(class|def) {name}\b", source), f"{path} has no {name}"
