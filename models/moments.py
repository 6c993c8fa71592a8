"""Running mean and variance of the number columns, by which they are standardised.

A slowly forgetting average: a row's weight halves every `HALF_LIFE_ROWS` rows, so that growing counters keep a spread of about
one. Batches are merged as deviations from the mean (Chan et al. 1979), which stays exact where sums of squares cancel. Absent
numbers (NaN) and infinities are not counted.

Beside these moments of all rows stand those of every scenario, by slot (`models.scenario_slots`): weight of the rows, weight of
the present numbers, mean, sum of squared deviations, and weight of the numbers that are not 0 either, since 0 is what the
feature engine writes where a number was not sent. A row weighs 1 in all rows and, in its scenario, as much as the traffic
that it stands for (`row_weights`), so that these are the moments that serving should see (`serving.divergence` compares). They
also standardise where `model.moments = "scenario"`.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from state import ids
from state.kernels import kernel

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

HALF_LIFE_ROWS = 200_000
LEAST_VARIANCE = 1e-6
ROWS, PRESENT, MEAN, SQUARES, FILLED = 0, 1, 2, 3, 4
KEPT = 5
"""What `observe` keeps of a number."""
OTHERS = "*"
"""In `scenarios.negative_sampling`, every scenario that is not named."""


@kernel
def update(moments: F64, x: F32, half_life: float) -> None:
    """Merge rows x (n, D) into moments (3, D): weight, mean, sum of squared deviations."""
    keep, numbers = 0.5 ** (x.shape[0] / half_life), x.shape[1]
    n, mean, spread = np.zeros(numbers), np.zeros(numbers), np.zeros(numbers)
    for i in range(x.shape[0]):
        # Without a branch, over neighbours: vectorised, and each number's sums keep their order.
        for j in range(numbers):
            v = np.float64(x[i, j])
            there = np.isfinite(v)
            away = v - mean[j] if there else 0.0
            n[j] += 1.0 if there else 0.0
            mean[j] += away / max(n[j], 1.0)
            spread[j] += away * (v - mean[j]) if there else 0.0
    for j in range(numbers):
        if n[j] == 0.0:
            continue
        old = moments[0, j] * keep
        base = moments[1, j] if old > 0.0 else mean[j]
        apart = mean[j] - base
        total = old + n[j]
        moments[0, j] = total
        moments[1, j] = base + apart * n[j] / total
        moments[2, j] = moments[2, j] * keep + spread[j] + apart * apart * old * n[j] / total


@kernel
def standard(moments: F64) -> tuple[F32, F32]:
    """Mean and 1 / standard deviation (D,) as float32; before any row they are 0 and 1."""
    mean, scale = np.empty(moments.shape[1], np.float32), np.empty(moments.shape[1], np.float32)
    for j in range(moments.shape[1]):
        variance = moments[2, j] / moments[0, j] if moments[0, j] > 0 else 1.0
        mean[j] = moments[1, j]
        scale[j] = 1.0 / np.sqrt(max(variance, LEAST_VARIANCE))
    return mean, scale


@kernel
def observe(observed: F64, x: F32, slot: I64, weight: F64, half_life: float) -> None:
    """Merge rows x (n, D) of slots (n,) with weights (n,) into observed (S, KEPT, D), row by row (West 1979).

    What a slot knew halves with `half_life` rows of its own, so other scenarios' rows change nothing of it.
    """
    rows = np.zeros(observed.shape[0])
    for i in range(len(slot)):
        rows[slot[i]] += 1.0
    for s in range(len(rows)):
        if rows[s] > 0.0:
            keep = 0.5 ** (rows[s] / half_life)
            for j in range(x.shape[1]):
                observed[s, ROWS, j] *= keep
                observed[s, PRESENT, j] *= keep
                observed[s, SQUARES, j] *= keep
                observed[s, FILLED, j] *= keep
    for i in range(x.shape[0]):
        own, w = observed[slot[i]], weight[i]
        if w <= 0.0:
            continue
        for j in range(x.shape[1]):
            v = np.float64(x[i, j])
            own[ROWS, j] += w
            if np.isfinite(v):
                own[PRESENT, j] += w
                own[FILLED, j] += w if v != 0.0 else 0.0
                away = v - own[MEAN, j]
                own[MEAN, j] += away * w / own[PRESENT, j]
                own[SQUARES, j] += w * away * (v - own[MEAN, j])


@kernel
def standards(shared: F64, observed: F64, prior: float) -> tuple[F32, F32]:
    """Mean and 1 / standard deviation (S, D) by which every slot standardises: its own, shrunk to the shared ones (3, D).

    What is mixed are standardised values, n / (n + `prior`) of the own and the rest of the shared one for n rows of the scenario
    with the number, as a scenario's own parameters count (`models.scenario_slots`): mixed moments would keep the distance between
    scenarios in the variance of each. After n rows a scale is at most n times the shared one. Slot 0 has the shared ones.
    """
    mean = np.empty((observed.shape[0], observed.shape[2]), np.float32)
    scale = np.empty((observed.shape[0], observed.shape[2]), np.float32)
    for s in range(observed.shape[0]):
        for j in range(observed.shape[2]):
            n = observed[s, PRESENT, j] if s > 0 else 0.0
            variance = shared[2, j] / shared[0, j] if shared[0, j] > 0 else 1.0
            middle, by = shared[1, j], 1.0 / np.sqrt(max(variance, LEAST_VARIANCE))
            if n > 0.0:
                own = min(1.0 / np.sqrt(max(observed[s, SQUARES, j] / n, LEAST_VARIANCE)), n * by)
                own_part, shared_part = n * own, prior * by
                middle = (own_part * observed[s, MEAN, j] + shared_part * middle) / (own_part + shared_part)
                by = (own_part + shared_part) / (n + prior)
            mean[s, j] = middle
            scale[s, j] = by
    return mean, scale


@kernel
def standardise(x: F32, slot: I64, mean: F32, scale: F32) -> F32:
    """Rows x (n, D) by the mean and scale (S, D) of their slots (n,); what is absent stays NaN."""
    out = np.empty_like(x)
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            out[i, j] = (x[i, j] - mean[slot[i], j]) * scale[slot[i], j]
    return out


def row_weights(label: F32, weight: F32, scenario: U64, sampling: Mapping[str, float]) -> F64:
    """How many rows of real traffic each row (n,) stands for.

    It is the largest of its objectives' weights (n, O): a row that is sent again only because others of its list changed has
    none. A row that no objective labels (n, O: all NaN) counts as 1, since serving sees its like too. A row without an action
    (no label above 0) stands for 1 / rate rows where the producer kept only this share of them: `sampling` by name of
    scenario, `OTHERS` for those that are not named; `scenario` (n,) are hashes.
    """
    out, acted = counts(label, weight)
    if not sampling:
        return out
    rate = np.full(len(out), sampling.get(OTHERS, 1.0))
    for name, share in sampling.items():
        if name != OTHERS:
            rate[scenario == np.uint64(ids.of(name))] = share
    return np.where(acted, out, out / rate)


@kernel
def counts(label: F32, weight: F32) -> tuple[F64, npt.NDArray[np.bool_]]:
    """`row_weights` inside kernels, where nothing is sampled, and whether a row has a label above 0.

    That is each row's largest weight, or 1 where it has no label.
    """
    out, acted = np.zeros(len(label)), np.zeros(len(label), np.bool_)
    for i in range(len(label)):
        labels = 0
        for o in range(label.shape[1]):
            if not np.isnan(label[i, o]):
                labels += 1
                out[i] = max(out[i], np.float64(weight[i, o]))
                acted[i] |= label[i, o] > 0
        if labels == 0:
            out[i] = 1.0
    return out, acted
