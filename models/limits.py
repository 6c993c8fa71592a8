"""How far an adaptation may move a prediction; one that asks for more has diverged.

The distance is that of the logits, `MOST_MOVED` of them, read back from what they predict (`models.losses`):

* binary: the logit, within 16 of zero.
* multiclass: the log-odds of any two of the classes, each probability at least 1e-7.
* regression: the logit itself, the transformed value over `scale`.
* ranking: as far as it likes, if it is a number. Only the order within a list means something, and rows that are held one by one,
  or all shrunk alike, lose it.

Serving holds such a prediction at the limit; the learner leaves the list the shared tower, and learns from that.
"""

import numpy as np
import numpy.typing as npt

from models.losses import Part, Plan
from state.kernels import kernel

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
MOST_MOVED = 8.0
"""Logits: odds times 3,000."""
ODDS = float(np.exp(MOST_MOVED))
LEAST = 1e-7
"""Probabilities nearer to 0 or 1 count as this near."""


def lists(plan: Plan, plain: F32, adapted: F32, n_items: I64, taken: I64) -> Bools:
    """Which lists (L,) of rows' predictions (R, outputs) an adaptation on `taken` (L,) rows moved too far, or to no number."""
    out = np.zeros(len(n_items), np.bool_)
    if plan.plain:
        find(plain, adapted, n_items, taken, out)
        return out
    out[np.repeat(np.arange(len(n_items)), n_items)[far(plan, plain, adapted)]] = True
    out[taken == 0] = False
    return out


def far(plan: Plan, plain: F32, adapted: F32) -> Bools:
    """Which rows (n,) of predictions (n, outputs) were moved too far, or to no number."""
    out = np.zeros(len(plain), np.bool_)
    if plan.plain:
        _rows(plain, adapted, out)
        return out
    out[~np.isfinite(adapted).all(1)] = True
    for part in plan.parts:
        if part.kind == "ranking":
            continue
        own = slice(part.at, part.at + part.width)
        change = _change(part, plain[:, own], adapted[:, own])
        size: F64 = np.ptp(change, axis=1) if part.kind == "multiclass" else np.abs(change[:, 0])
        out[size > MOST_MOVED] = True
    return out


def served(plan: Plan, plain: F32, adapted: F32, n_items: I64, taken: I64) -> tuple[F32, int]:
    """What serving says of lists' rows (R, outputs) that were adapted on `taken` (L,) rows, and how many lists diverged.

    A list with what is no number has the plain predictions, the others are held.
    """
    broken = lists(plan, plain, adapted, n_items, taken)
    if not broken.any():
        return adapted, 0
    of = np.repeat(np.arange(len(n_items)), n_items)
    nothing = np.bincount(of, ~np.isfinite(adapted).all(1), len(n_items)) > 0
    return hold(plan, plain, np.where(nothing[of][:, None], plain, adapted)), int(broken.sum())


def hold(plan: Plan, plain: F32, adapted: F32) -> F32:
    """Finite predictions (n, outputs) at most `MOST_MOVED` from the plain ones, in the same direction; rankings as they are."""
    if plan.plain:
        return _held(Part("binary", 0, 1, log1p=False, scale=1.0), plain, adapted)
    own = [slice(part.at, part.at + part.width) for part in plan.parts]
    return np.concatenate([_held(part, plain[:, at], adapted[:, at]) for part, at in zip(plan.parts, own, strict=True)], 1)


def _held(part: Part, plain: F32, adapted: F32) -> F32:
    """`hold` of one objective; what is near enough keeps its bytes."""
    if part.kind == "ranking":
        return adapted
    change = _change(part, plain, adapted)
    size = np.ptp(change, axis=1, keepdims=True) if part.kind == "multiclass" else np.abs(change)
    over = size > MOST_MOVED
    if not over.any():
        return adapted
    end = _logits(part, plain) + change * (MOST_MOVED / np.maximum(size, MOST_MOVED))
    if part.kind == "multiclass":
        end = np.exp(end - end.max(1, keepdims=True))
        end /= end.sum(1, keepdims=True)
    elif part.kind == "regression":
        end = np.expm1(end * part.scale) if part.log1p else end * part.scale
    else:
        end = 1.0 / (1.0 + np.exp(-end))
    return np.where(over, end, adapted).astype(np.float32)


def _change(part: Part, plain: F32, adapted: F32) -> F64:
    with np.errstate(invalid="ignore"):
        return _logits(part, adapted) - _logits(part, plain)


def _logits(part: Part, predicted: F32) -> F64:
    """What predictions (n, width) of an objective say of its logits; of a multiclass one up to a constant in each row."""
    p = predicted.astype(np.float64)
    if part.kind == "regression":
        return (np.log1p(np.maximum(p, LEAST - 1.0)) if part.log1p else p) / part.scale
    held = np.clip(p, LEAST, 1.0 - LEAST)
    return np.log(held) if part.kind == "multiclass" else np.log(held) - np.log1p(-held)


@kernel
def _too_far(plain: np.float32, adapted: np.float32) -> bool:
    """Whether a probability is no number, or its odds changed by more than a factor `ODDS`."""
    if not np.isfinite(adapted):
        return True
    u = min(max(np.float64(plain), LEAST), 1.0 - LEAST)
    a = min(max(np.float64(adapted), LEAST), 1.0 - LEAST)
    up, down = a * (1.0 - u), u * (1.0 - a)
    return up > ODDS * down or down > ODDS * up


@kernel
def _rows(plain: F32, adapted: F32, out: Bools) -> None:
    for i in range(len(plain)):
        for j in range(plain.shape[1]):
            out[i] |= _too_far(plain[i, j], adapted[i, j])


@kernel
def find(plain: F32, adapted: F32, n_items: I64, taken: I64, out: Bools) -> None:
    """`lists` inside kernels, of binary objectives: marks those in `out` (L,)."""
    end = 0
    for k in range(len(n_items)):
        start, end = end, end + n_items[k]
        if taken[k] == 0:
            continue
        for i in range(start, end):
            for j in range(plain.shape[1]):
                out[k] |= _too_far(plain[i, j], adapted[i, j])
