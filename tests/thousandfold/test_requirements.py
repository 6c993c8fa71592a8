"""What `make demo` installs must be enough to run: tests have more installed, and would not notice."""

import ast
import importlib.metadata
import pathlib
import re
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PACKAGES = ("streams", "learner", "models", "state", "serving", "thousandfold")


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[=<>~!; ]", line)[0].lower().replace("_", "-") for line in requirements}


def imported(package: str) -> dict[str, set[str]]:
    """Top-level modules imported anywhere in a package's files, and by which files."""
    found: dict[str, set[str]] = {}
    for file in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            for module in modules:
                found.setdefault(module.partition(".")[0], set()).add(str(file.relative_to(ROOT)))
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_every_import_is_a_declared_dependency(package: str) -> None:
    owners = importlib.metadata.packages_distributions()
    runtime, optional = names(PROJECT["dependencies"]), PROJECT["optional-dependencies"]
    for module, files in imported(package).items():
        if module in sys.stdlib_module_names or module in PACKAGES:
            continue
        allowed = runtime | names(optional["embedded"])
        if all("/bench/" in file for file in files):
            allowed |= names(optional["bench"])
        assert {owner.lower().replace("_", "-") for owner in owners[module]} & allowed, f"{module} of {sorted(files)}"


def test_every_declared_dependency_is_pinned_in_what_the_demo_installs() -> None:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pinned = names([line for line in lines if "==" in line])
    assert names(PROJECT["dependencies"]) | names(PROJECT["optional-dependencies"]["embedded"]) <= pinned


def test_make_bench_installs_every_peer_that_it_compares_with_and_changes_nothing_that_is_there() -> None:
    peers = re.findall(r'find_spec\("(\w+)"\)', (ROOT / "thousandfold/bench/training_peers.py").read_text(encoding="utf-8"))
    lines = (ROOT / "requirements-peers.txt").read_text(encoding="utf-8").splitlines()
    pinned = [line.partition(";")[0] for line in lines if not line.startswith("#")]
    assert peers
    assert {peer.replace("_", "-") for peer in peers} <= {name.removesuffix("-cpu") for name in names(pinned)}
    assert all("==" in line for line in pinned)
    # They go over what is installed: another version of the same would change what is measured.
    assert not names(pinned) & names((ROOT / "requirements-dev.txt").read_text(encoding="utf-8").splitlines())
    assert not names(pinned) & names((ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines())
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "--no-deps -r requirements-peers.txt" in makefile
    assert "bench: $(VENV)/.peers" in makefile
