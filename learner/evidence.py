"""How sure it is that one of two predictions is the better one: a test that may be looked at after every list.

The null is that a bounded difference d has no positive mean given the past, E[d_t | d_1 .. d_(t-1)] <= 0 for all t. A player who
bets the share b of his wealth on each next difference, W_t = W_(t-1) (1 + b d_t), then has a nonnegative supermartingale, and by
Ville's inequality P(some W_t >= 1 / alpha) <= alpha, however long one looks (Waudby-Smith and Ramdas 2024, "Estimating means of
bounded random variables by betting", section 4; for differences of scores of forecasts Henzi and Ziegel 2022 and Choe and Ramdas
2024). The mean of several such wealths is another: bets from `LARGEST` down by halves win nearly what the best of them would,
whatever the unknown size of the gain (Cover's universal portfolio, on a grid). A gain g with deviation s between lists is found
after about 2 log(10 / alpha) s^2 / g^2 lists, or log(10 / alpha) / (LARGEST g) where that is more.

The bets do not look at who comes next, so the mean is over the tasks as they come: a gain for some at a greater loss for others
is no gain. Logloss has no bound; that of predictions held within `BOUND` logits differs by less than `BOUND`.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
BOUND = 8.0
LARGEST = 0.9 / BOUND
BETS = LARGEST * 0.5 ** np.arange(10)


class Seen(NamedTuple):
    """What a test knows: the logarithms of its wealths (len(BETS),), and the differences that it was told."""

    wealth: F64
    told_of: int


def fresh() -> Seen:
    """A test that knows nothing."""
    return Seen(np.zeros(len(BETS)), 0)


def value(seen: Seen) -> float:
    """Logarithm of the e-value: above log(1 / alpha), the null is refused at alpha."""
    top = float(seen.wealth.max())
    return top + math.log(float(np.exp(seen.wealth - top).mean()))


def told(seen: Seen, differences: F64, threshold: float) -> tuple[Seen, bool]:
    """Tell a test differences in [-BOUND, BOUND] in order, up to the first after which `value` is at least `threshold`.

    Returns what it knows then, and whether that happened; `told_of` says how many were told in all.
    """
    if not len(differences):
        return seen, False
    # The sum starts with what is known, so that its bytes do not depend on how the differences were cut into calls.
    path = np.cumsum(np.concatenate([seen.wealth[None], np.log1p(differences[:, None] * BETS)]), 0)[1:]
    top = path.max(1)
    crossed = top + np.log(np.exp(path - top[:, None]).mean(1)) >= threshold
    last = int(crossed.argmax()) if crossed.any() else len(path) - 1
    return Seen(path[last].copy(), seen.told_of + last + 1), bool(crossed[last])


def gains(n_items: npt.NDArray[Any], label: F32, weight: F32, adapted: F32, unadapted: F32) -> F64:
    """(L,) what adaptation gained in each list: mean logloss unadapted less adapted, of rows (R, O) of binary objectives.

    Predictions count as if held within `BOUND` logits, on both sides, so a gain is in [-BOUND, BOUND]. NaN: nothing to judge, as
    no row has weight, or both predict the same.
    """
    least = 1.0 / (1.0 + math.exp(BOUND))
    p, q = (np.clip(part.astype(np.float64), least, 1.0 - least) for part in (adapted, unadapted))
    counted = (weight > 0) & np.isfinite(label) & np.isfinite(p) & np.isfinite(q)
    w, y = np.where(counted, weight, 0.0).astype(np.float64), np.where(counted, label, 0.0)
    with np.errstate(invalid="ignore"):
        d = y * (np.log(p) - np.log(q)) + (1.0 - y) * (np.log1p(-p) - np.log1p(-q))
    of, lists = np.repeat(np.arange(len(n_items)), n_items), len(n_items)
    mass = np.bincount(of, w.sum(1), lists)
    differs = np.bincount(of, (counted & (p != q)).any(1), lists) > 0
    total = np.bincount(of, (w * np.where(counted, d, 0.0)).sum(1), lists)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(differs & (mass > 0), total / mass, np.nan))
