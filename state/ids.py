"""Stable 64-bit ids: the same value has the same id in every process, on every machine, for ever."""

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
Value = str | int | float | bool

PAD = 2**64 - 1
"""Marks an absent value of a multi-valued category, or an action that has no item. No value has this id."""

_SPREAD = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(0x7F4A7C15F39CC060)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_30, _27, _31 = np.uint64(30), np.uint64(27), np.uint64(31)


def of(value: Value) -> int:
    """The id of a text or a number: blake2b-8 of its text, little-endian.

    A whole number has the id of its decimal text, whatever type it came in: 7, 7.0 and "7" are the same, so are True, 1 and "1".
    """
    if not isinstance(value, str):
        value = str(int(value)) if value == int(value) else repr(value)
    digest = hashlib.blake2b(value.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return min(int.from_bytes(digest, "little"), PAD - 1)


class Ids(dict[Value, int]):
    """`ids[value]` is `of(value)`, hashed once while it is remembered. Bounded: cleared when `capacity` is reached."""

    def __init__(self, capacity: int = 1_000_000) -> None:
        super().__init__()
        self.capacity = capacity
        self._several: dict[Any, list[int]] = {}

    def __missing__(self, value: Value) -> int:
        if len(self) >= self.capacity:
            self.clear()
        found = self[value] = of(value)
        return found

    def several(self, values: tuple[Value | None, ...] | Value | None) -> list[int]:
        """The distinct ids of some values in order, of one, or of none; None is no value. Remembered like single ones."""
        found = self._several.get(values)
        if found is None:
            if len(self._several) >= self.capacity:
                self._several.clear()
            given = values if isinstance(values, tuple) else (values,)
            found = self._several[values] = list(dict.fromkeys(self[v] for v in given if v is not None))
        return found


def mixed(a: U64, b: U64) -> U64:
    """`mix` without any conversion; numba compiles this very function for use inside kernels."""
    z = a ^ (b * _SPREAD + _SHIFT)
    z = (z ^ (z >> _30)) * _FIRST
    z = (z ^ (z >> _27)) * _SECOND
    out: U64 = z ^ (z >> _31)
    return out


def mix(a: npt.ArrayLike, b: npt.ArrayLike) -> U64:
    """One id of two, elementwise, with the usual broadcasting; order matters (finaliser of Steele et al. 2014, SplitMix)."""
    with np.errstate(over="ignore"):
        out: U64 = np.asarray(mixed(np.asarray(a, np.uint64), np.asarray(b, np.uint64)), np.uint64)
    return out
