"""How native kernels are compiled: numba, cached on disk, no fast-math, so that results are repeatable."""

from collections.abc import Callable
from typing import TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., object])


def kernel(function: Function) -> Function:
    """Compile `function` natively; it releases the interpreter lock while it runs.

    No fast-math and no reordering of sums: the same input gives the same bytes (docs/decisions).
    """
    return cast("Function", numba.njit(cache=True, nogil=True, error_model="numpy")(function))
