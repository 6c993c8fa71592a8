"""Finished passes in a folder, so that an interrupted benchmark goes on where it was."""

import hashlib
import pathlib
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from state import config as configuration
from thousandfold.bench import protocol

Arrays = dict[str, npt.NDArray[Any]]


def digest(inputs: protocol.Inputs, *how: object) -> bytes:
    """What a pass depends on beside its configuration: the inputs, and `how` they are read; not the code."""
    hashed = hashlib.sha256(repr((*how, inputs.lag)).encode())
    for array in (inputs.ids, inputs.x, inputs.label, inputs.start, inputs.known):
        hashed.update(np.ascontiguousarray(array).tobytes())
    return hashed.digest()


def arrays(
    folder: pathlib.Path | None, resume: bool, of: bytes, name: str, config: configuration.Config, make: Callable[[], Arrays]
) -> Arrays:
    """What `make` returns, kept in `folder` if there is one; with `resume` read from there if `of`, name and settings agree."""
    if folder is None:
        return make()
    key = hashlib.sha256(of + name.encode() + msgspec.json.encode(config, order="deterministic")).hexdigest()[:24]
    file = folder / f"{key}.npz"
    if resume and file.exists():
        with np.load(file, allow_pickle=False) as found:
            return {name: found[name] for name in found.files}
    made = make()
    folder.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".part")
    with temporary.open("wb") as out:
        np.savez(out, allow_pickle=False, **made)
    temporary.replace(file)
    return made
