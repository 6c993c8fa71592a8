import importlib
import pathlib
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import util

import pytest

from state import config as configuration

ROOT = pathlib.Path(configuration.__file__).parent.parent
PACKAGES = ("streams", "learner", "models", "state", "serving", "thousandfold")


@pytest.mark.parametrize("name", PACKAGES)
def test_a_root_package_is_ours_and_not_another_of_that_name(name: str) -> None:
    found = util.find_spec(name)
    assert found is not None
    assert found.origin == str(ROOT / name / "__init__.py")


def test_the_wheel_holds_every_package_typed_and_nothing_else(tmp_path: pathlib.Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    [wheel] = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == set(PACKAGES)
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(names)
    sources = {str(file.relative_to(ROOT)) for package in PACKAGES for file in (ROOT / package).rglob("*.py")}
    assert sources <= set(names)


def test_the_script_of_the_wheel_exists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, function = project["scripts"]["thousandfold"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_everything_that_is_required_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    pinned = {
        line.split("==")[0]
        for file in ("requirements.txt", "requirements-dev.txt")
        for line in (ROOT / file).read_text().splitlines()
        if "==" in line
    }
    wanted = {text for group in (project["dependencies"], *extras.values()) for text in group}
    assert {re.split(r"[\[=<>]", text)[0] for text in wanted} <= pinned
    assert "torch==2.13.0" in (ROOT / "requirements.txt").read_text().splitlines()
