"""Which library multiplies torch's float32 matrices: chosen at start, by measuring speed and error.

`torch.set_float32_matmul_precision("medium")` sends them to oneDNN: faster than MKL on some processors, less accurate on others
(bfloat16 units). It compiles a kernel for each shape it meets, so with row counts that vary from step to step, as whole
lists make them, it is slower; that is what is measured. The flag is of the whole process; native steps do not read it.
"""

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch

from state import config

Library = Literal["mkl", "onednn"]
PRECISION: dict[Library, Literal["highest", "medium"]] = {"mkl": "highest", "onednn": "medium"}
GAIN = 1.1
"""oneDNN must be so much faster: a choice that is made either way from one start to the next would not repeat."""
ERROR = 1.5
"""And its error at most so much times MKL's."""
ROUNDS, STEPS = 3, 12


class Measured(NamedTuple):
    """Of one library: seconds of the products of `STEPS` steps, the fastest of `ROUNDS`, and the largest relative error."""

    seconds: float
    error: float


def shapes(settings: config.Config, inputs: int) -> list[tuple[int, int]]:
    """Weights (inputs, outputs) of the model's layers, from what a network reads of a row."""
    model = settings.model
    return list(itertools.pairwise((inputs, *(model.expert_hidden or ()), *model.hidden)))


def measure(
    rows: Sequence[int], weights: Sequence[tuple[int, int]], clock: Callable[[], float] = time.perf_counter
) -> dict[Library, Measured]:
    """Both libraries, in turns, on forward products of these row counts, one after the other; leaves the flag as it was."""
    before, generator = torch.get_float32_matmul_precision(), torch.Generator().manual_seed(0)
    made = [(torch.randn(n, a, generator=generator), torch.randn(a, b, generator=generator)) for n in rows for a, b in weights]
    seconds: dict[Library, list[float]] = {library: [] for library in PRECISION}
    errors: dict[Library, float] = {}
    try:
        for _ in range(ROUNDS):
            for library, precision in PRECISION.items():
                torch.set_float32_matmul_precision(precision)
                began = clock()
                found = [x @ w for x, w in made]
                seconds[library].append(clock() - began)
                errors[library] = max(_error(out, x, w) for out, (x, w) in zip(found, made, strict=True))
    finally:
        torch.set_float32_matmul_precision(before)
    return {library: Measured(min(seconds[library]), errors[library]) for library in PRECISION}


def _error(out: torch.Tensor, x: torch.Tensor, w: torch.Tensor) -> float:
    exact = x.double() @ w.double()
    return float((out.double() - exact).abs().max() / exact.abs().max())


def choose(measured: dict[Library, Measured]) -> Library:
    """OneDNN where it is clearly faster and as exact, else MKL."""
    mkl, onednn = measured["mkl"], measured["onednn"]
    return "onednn" if mkl.seconds > GAIN * onednn.seconds and onednn.error <= ERROR * mkl.error else "mkl"


def row_counts(rows_per_step: int, vary: bool) -> list[int]:
    """Row counts of `STEPS` steps: all the same, or as different as whole lists make them."""
    return [rows_per_step + (i * 7 % STEPS if vary else 0) for i in range(STEPS)]


def apply(settings: config.Config, inputs: int, clock: Callable[[], float] = time.perf_counter) -> Library:
    """Set the flag as `learner.products` says, or by measuring row counts that vary; returns whose products they are now."""
    library: Library
    if settings.learner.products == "auto":
        rows = row_counts(settings.learner.rows_per_step, vary=True)
        library = choose(measure(rows, shapes(settings, inputs), clock))
    else:
        library = settings.learner.products
    torch.set_float32_matmul_precision(PRECISION[library])
    return library
