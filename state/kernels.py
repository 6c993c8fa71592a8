"""How native kernels are compiled: numba, cached on disk, no fast-math, so that results are repeatable."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt
from numba.core import config

from state import kernel_cache

# Numba makes this attribute from the environment; what somebody set there stays.
config.CACHE_LOCATOR_CLASSES = config.CACHE_LOCATOR_CLASSES or kernel_cache.LOCATORS  # type: ignore[attr-defined]

Function = TypeVar("Function", bound=Callable[..., object])
Number = TypeVar("Number", bound=np.generic)
Plain = tuple[Any, ...]
"""The values of a named tuple, for a kernel that python calls: numba types those of a named one at four times the cost."""


def kernel(function: Function) -> Function:
    """Compile `function` natively; it releases the interpreter lock while it runs.

    No fast-math and no reordering of sums: the same input gives the same bytes (docs/decisions).
    """
    return cast("Function", numba.njit(cache=True, nogil=True, error_model="numpy")(function))


def inlined(function: Function) -> Function:
    """Compile `function` into each kernel that calls it: for those of many arrays, whose passing costs more than they do."""
    return cast("Function", numba.njit(inline="always", nogil=True, error_model="numpy")(function))


def plain(array: npt.NDArray[Number]) -> npt.NDArray[Number]:
    """The array as kernels take it: itself, or a copy if it is read-only, unaligned or not contiguous."""
    return array if array.flags.carray else np.array(array)
