"""Settings that `--choose` of a benchmark wrote."""

import pathlib
import tomllib
from typing import TypeVar

import msgspec

from state import config as configuration

T = TypeVar("T")


def read(file: pathlib.Path, kind: type[T], command: str) -> T:
    """A file of settings, in the form `kind`.

    Raises:
        ConfigError: the file cannot be read; it says what writes one.
    """
    try:
        return msgspec.convert(tomllib.loads(file.read_text(encoding="utf-8")), kind)
    except (OSError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise configuration.ConfigError(
            f"{file}: {error}; thousandfold bench {command} --choose --settings FILE writes it"
        ) from error
