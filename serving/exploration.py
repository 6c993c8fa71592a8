"""A share of traffic for new items: which of them takes the explored place, and how likely everything shown was.

Thompson sampling is probability matching: a candidate is chosen as often as it is the best. So the chances of being the best are
worked out and the choice is drawn from exactly these, which makes the logged propensities those of the draw and not an estimate.
What is believed of a candidate's logit is normal around the model's own score p, with the variance of n0 + n observations of it:
1 / ((n0 + n + 1) p (1 - p)), n the times that it was shown (a Laplace posterior, Chapelle and Li 2011, algorithm 3, with the
model's prediction as its mean and counts as its precision).

The order by score is kept but for one item: with probability `share`, a new candidate from behind the explored place is put
there, and those that it passes move one place back.
"""

import hashlib

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from state import config, spec

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
GRID = 257
"""Points at which beliefs are compared; the choice is drawn from what comes out, so a coarse grid costs no exactness."""
SPREAD = 5.0
"""Standard deviations that the grid reaches beyond the outermost beliefs."""
MOST = 64
"""New candidates that compete: those with the best scores."""
SURE = 1e-4
"""Scores are kept this far from 0 and 1, where a variance would have no bound."""


class Exploration(msgspec.Struct, frozen=True):
    """How a reply is to be shown: candidates' positions in the request in the order to show them, how likely each of these was to
    stand where it stands, and the one that was put forward, or none.
    """

    order: list[int]
    propensity: list[float]
    explored: int | None


def column(settings: config.Config) -> int:
    """Where the exposures of an item stand among the numbers, as log(1 + n)."""
    return spec.number_names(settings.features).index(settings.serving.exploration.count)


def draws(seed: int, *request: object) -> tuple[float, float]:
    """Two numbers in [0, 1) that depend on the seed and on what names the request, and on nothing else."""
    text = "\x1f".join(map(repr, (seed, *request))).encode()
    found = hashlib.blake2b(text, digest_size=16, person=b"exploration").digest()
    one, other = (int.from_bytes(found[at : at + 8], "little") >> 11 for at in (0, 8))
    return one / 2**53, other / 2**53


def best_chances(score: F64, seen: F64, prior: float) -> F64:
    """(n,) chance of each candidate to be the best, which sum to one, from scores (n,) in (0, 1) and exposures (n,)."""
    p = np.clip(score, SURE, 1 - SURE)
    mean = np.log(p / (1 - p))
    deviation = 1 / np.sqrt((prior + seen + 1) * p * (1 - p))
    low, high = (mean - SPREAD * deviation).min(), (mean + SPREAD * deviation).max()
    grid = np.linspace(low, high, GRID)
    below = torch.special.ndtr(torch.from_numpy((grid - mean[:, None]) / deviation[:, None])).numpy()
    log_below = np.log(np.maximum(below, 1e-300))
    gained = np.diff(below, axis=1)
    beaten = np.exp(log_below.sum(0) - log_below)
    chance = (gained * (beaten[:, 1:] + beaten[:, :-1]) / 2).sum(1)
    return np.asarray(chance / chance.sum(), np.float64)


def explore(settings: config.Exploration, score: F32, seen: F64, draw: tuple[float, float]) -> Exploration:
    """The order to show candidates in, from scores (R,) and exposures (R,) of one request; equal scores keep their order.

    The propensities (R,) are those of all that may happen with these scores: with probability 1 - share the plain order, else one
    of the orders with a new candidate put forward.
    """
    plain = np.argsort(-score, kind="stable")
    eligible = np.flatnonzero((seen[plain] < settings.new_below) & (np.arange(len(plain)) > settings.place))[:MOST]
    if not len(eligible):
        return Exploration(plain.tolist(), [1.0] * len(plain), None)
    rows = plain[eligible]
    chance = np.zeros(len(plain))
    chance[eligible] = settings.share * best_chances(score[rows].astype(np.float64), seen[rows], settings.prior)
    order, taken = plain, None
    if draw[0] < settings.share:
        edges = np.cumsum(chance[eligible])
        taken = int(eligible[min(int(np.searchsorted(edges, draw[1] * edges[-1], side="right")), len(eligible) - 1)])
        order = np.concatenate([plain[: settings.place], plain[[taken]], np.delete(plain, taken)[settings.place :]])
    return Exploration(
        order.tolist(), _propensity(chance, taken, settings.place).tolist(), None if taken is None else int(plain[taken])
    )


def _propensity(chance: F64, taken: int | None, place: int) -> F64:
    """(R,) by shown place: how likely its candidate was to stand there; chances (R,) to be put forward are by plain place."""
    behind = np.maximum(chance.sum() - np.cumsum(chance), 0.0)
    pushed = np.where(np.arange(len(chance)) >= place, behind, 0.0)
    stays = 1.0 - pushed - chance
    if taken is None:
        return stays
    shown = stays.copy()
    shown[place] = chance[taken]
    shown[place + 1 : taken + 1] = pushed[place:taken]
    return shown
