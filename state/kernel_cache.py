"""When a compiled kernel on disk is out of date: when anything changed that was compiled into it, in whatever file.

numba looks at the kernel's own file only. A kernel holds what it calls, so after a change of another file's kernel, constant or
named tuple the stale one would give other numbers, or crash.
"""

import functools
import hashlib
import inspect
import pathlib
import sys
import types
from collections.abc import Iterator

import numpy as np
from numba.core import caching

_FOREIGN = sys.stdlib_module_names | {"llvmlite", "numba", "numpy"}


def stamp(function: types.FunctionType) -> str:
    """A digest of a kernel's file, of those of all that its names and annotations reach, and of the constants among these.

    Times and folders do not count, so kernels may be compiled in one place and be copied to another together with the sources.
    """
    parts, seen = {_digest(inspect.getfile(function))}, set[int]()
    waiting: list[tuple[str, object]] = [("", function)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, bool | int | float | str | np.generic):
            parts.add(f"{name}={value!r}".encode())
        elif isinstance(value, np.ndarray):
            parts.add(name.encode() + value.tobytes())
        elif isinstance(value, tuple):
            waiting += [(name, part) for part in value]
        elif (file := _file(value)) is not None and id(value) not in seen:
            seen.add(id(value))
            parts.add(_digest(file))
            waiting += _reached(inspect.unwrap(value) if callable(value) else value)
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in sorted(parts))).hexdigest()


def _reached(defined: object) -> Iterator[tuple[str, object]]:
    """What is annotated, and what a function's names mean: in its module, in modules that it names, in the function around it."""
    yield from getattr(defined, "__annotations__", {}).items()
    if not isinstance(defined, types.FunctionType):
        return
    yield from zip(defined.__code__.co_freevars, (cell.cell_contents for cell in defined.__closure__ or ()), strict=True)
    names, spaces, seen = sorted(set(_names(defined.__code__))), [defined.__globals__], set[str]()
    while spaces:
        space = spaces.pop()
        for name, value in ((name, space[name]) for name in names if name in space):
            if not isinstance(value, types.ModuleType):
                yield name, value
            elif value.__name__ not in seen and value.__name__.partition(".")[0] not in _FOREIGN:
                seen.add(value.__name__)
                spaces.append(vars(value))


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _file(value: object) -> str | None:
    """The file that a function or class was defined in; None for what is python's, numpy's or numba's own."""
    module = getattr(value, "__module__", None)
    if not isinstance(module, str) or module.partition(".")[0] in _FOREIGN:
        return None
    return getattr(sys.modules.get(module), "__file__", None)


def _digest(file: str) -> bytes:
    found = pathlib.Path(file).stat()
    return _digest_of(file, found.st_mtime_ns, found.st_size)


@functools.cache
def _digest_of(file: str, _changed_ns: int, _bytes: int) -> bytes:
    return hashlib.sha256(pathlib.Path(file).read_bytes()).digest()


class _Complete:
    """Mixed into numba's locators: the stamp of the function instead of that of its file."""

    def __init__(self, function: types.FunctionType, file: str) -> None:
        super().__init__(function, file)  # type: ignore[call-arg] # that of the locator this is mixed into
        self._function = function

    def get_source_stamp(self) -> str:
        return stamp(self._function)


class InGivenFolder(_Complete, caching.UserProvidedCacheLocator):
    """In the folder that `NUMBA_CACHE_DIR` names."""


class BesideSource(_Complete, caching.InTreeCacheLocator):
    """In the `__pycache__` beside the kernel's file, where that can be written."""


class OfUser(_Complete, caching.UserWideCacheLocator):
    """In the user's folder for caches."""


LOCATORS = ",".join(f"{__name__}.{locator.__name__}" for locator in (InGivenFolder, BesideSource, OfUser))
"""As `NUMBA_CACHE_LOCATOR_CLASSES` wants them, tried in this order, which is numba's own."""
