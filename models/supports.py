"""Support rows of a minibatch as adaptation tasks: which lists are adapted, from which distinct rows, padded how."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from models import base, kernels, modes
from models.vectors import alike, row_address
from state import config
from state.kernels import inlined, kernel, plain

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
F32 = npt.NDArray[np.float32]
_ODD = np.uint64(0x9E3779B97F4A7C15)


class Distinct(NamedTuple):
    """The support rows that must be computed, each once, and who uses them."""

    rows: I64
    """(U,) positions among the batch's support rows."""
    place: I32
    """(L, cap) positions in `rows`; only the first `taken` of a list count."""
    taken: I64
    """(L,) rows a list adapts on; 0 leaves it unadapted."""
    extra: I64
    """(V,) positions of those that are no row of the minibatch itself: these are computed behind its R rows."""
    at: I64
    """(U,) where each is computed: below R as the minibatch's equal row, else R + its place in `extra`."""
    share: F32 | None = None
    """(L, cap) weights of a list's rows by age, which sum to one; None: all the same."""


def of(settings: config.MetaLearning, batch: base.Batch, codes: I64) -> Distinct:
    """The support rows of a minibatch, weighted by age if so configured and the times are known."""
    return aged(settings, batch, distinct(batch, codes, settings.min_support, settings.support_rows))


def aged(settings: config.MetaLearning, batch: base.Batch, found: Distinct) -> Distinct:
    """`found` with weights by age, if so configured and the times are known."""
    if not settings.half_life_s or not len(batch.s_ts):
        return found
    share = np.zeros(found.place.shape, np.float32)
    ends = np.cumsum(batch.n_support)
    for t in np.flatnonzero(found.taken).tolist():
        share[t, : found.taken[t]] = by_age(batch.s_ts[ends[t] - found.taken[t] : ends[t]], settings.half_life_s)
    return found._replace(share=share)


def row_weights(settings: config.MetaLearning, rows: int, ts: I64) -> F32:
    """Weights of a task's n rows: by age where there are times (ms), in sum n / (n + `prior_rows`)."""
    aged = settings.half_life_s and len(ts)
    weight = by_age(ts, settings.half_life_s) if aged else np.full(rows, 1.0 / max(rows, 1), np.float32)
    return weight * np.float32(rows / (rows + settings.prior_rows)) if settings.prior_rows else weight


def by_age(ts: I64, half_life_s: float) -> F32:
    """Weights (k,) of rows of these times (ms), which sum to one: half for every half-life that a row is older than another."""
    age_s = (ts.max() - ts) / 1000.0
    weight = np.exp2(-age_s / half_life_s)
    return np.asarray(weight / weight.sum(), np.float32)


def distinct(batch: base.Batch, codes: I64, least: int, cap: int) -> Distinct:
    """Choose each list's newest `cap` rows, none where the mode is off or the list has fewer than `least` rows."""
    counts = np.ascontiguousarray(batch.n_support, np.int64)
    own = plain(batch.ids), plain(batch.x), plain(batch.s_ids), plain(batch.s_x), plain(batch.s_label)
    return Distinct(*choose(*own, counts, codes, least, cap))


@kernel
def choose(
    ids: U64, x: F32, s_ids: U64, s_x: F32, s_label: F32, counts: I64, codes: I64, least: int, cap: int
) -> tuple[I64, I32, I64, I64, I64]:
    """The arrays of `Distinct`, see `distinct`."""
    lists, rows, wanted = len(counts), len(s_ids), False
    index, taken, asks = np.zeros((lists, cap), np.int32), np.zeros(lists, np.int64), np.zeros(lists, np.bool_)
    for t in range(lists):
        asks[t] = codes[t] != modes.OFF and counts[t] >= max(least, 1)
        wanted |= asks[t]
    if not wanted:
        nothing = np.zeros(0, np.int64)
        return nothing, index, taken, nothing, nothing
    size = 2
    while size <= 2 * max(rows, len(ids)):
        size *= 2
    first, slots, words = np.empty(rows, np.int64), np.empty(size, np.int32), s_x.view(np.uint32)
    n = kernels.distinct(s_ids, words, s_label.view(np.uint32), counts, asks, cap, index, taken, first, slots)
    extra, at = np.empty(n, np.int64), np.empty(n, np.int64)
    more = _place(ids, x.view(np.uint32), s_ids, words, first[:n], slots, extra, at)
    return first[:n], index, taken, extra[:more], at


@kernel
def _hash(ids: U64, i: int) -> np.uint64:
    h = np.uint64(0)
    for f in range(ids.shape[1]):
        h += (ids[i, f] ^ (_ODD * np.uint64(f))) * _ODD
    return kernels.mix(h)


@inlined
def _same(ids: U64, x: U32, i: int, s_ids: U64, s_x: U32, j: int) -> bool:
    return alike(row_address(ids, i), row_address(s_ids, j), 2 * ids.shape[1]) and alike(
        row_address(x, i), row_address(s_x, j), x.shape[1]
    )


@kernel
def _place(ids: U64, x: U32, s_ids: U64, s_x: U32, first: I64, slots: I32, extra: I64, at: I64) -> int:
    """Find support rows among the minibatch's: lists of one user close together are each other's support. See `Distinct`."""
    slots[:] = -1
    last, more = np.uint64(len(slots) - 1), 0
    for i in range(len(ids)):
        h = _hash(ids, i) & last
        while slots[h] >= 0:
            h = (h + np.uint64(1)) & last
        slots[h] = i
    for k in range(len(first)):
        h = _hash(s_ids, first[k]) & last
        while slots[h] >= 0 and not _same(ids, x, slots[h], s_ids, s_x, first[k]):
            h = (h + np.uint64(1)) & last
        at[k] = slots[h]
        if slots[h] < 0:
            at[k], extra[more] = len(ids) + more, first[k]
            more += 1
    return more


class Padded(NamedTuple):
    """T adapted lists as rectangles: support (T, K) with weights (see `row_weights`) or 0, queries (T, Q), and the way back."""

    support: torch.Tensor
    weight: torch.Tensor
    query: torch.Tensor
    rows: torch.Tensor
    """(n,) minibatch rows of adapted lists."""
    back: torch.Tensor
    """(n,) their positions in the flattened (T, Q)."""


def pad(found: Distinct, n_items: npt.NDArray[np.integer[Any]], prior_rows: float = 0.0) -> Padded:
    """Rectangles for the lists that have support; padding points at some valid row and is masked by weight or never read."""
    lists = np.flatnonzero(found.taken)
    taken, items = found.taken[lists], np.asarray(n_items, np.int64)[lists]
    starts = (np.cumsum(n_items) - n_items)[lists].astype(np.int64)
    k, q = np.arange(taken.max()), np.arange(items.max())
    weight = np.where(k < taken[:, None], 1.0 / taken[:, None], 0.0).astype(np.float32)
    if found.share is not None:
        weight = found.share[lists, : len(k)]
    if prior_rows:
        weight = weight * (taken / (taken + prior_rows)).astype(np.float32)[:, None]
    inside = q < items[:, None]
    query = starts[:, None] + np.where(inside, q, 0)
    arrays = (found.place[lists, : len(k)].astype(np.int64), weight, query, query[inside], np.flatnonzero(inside))
    return Padded(*(torch.from_numpy(a) for a in arrays))
