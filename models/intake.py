"""From a minibatch to what the network reads of it, in one native call: at 50 rows a call from python costs as much as its work.

It chooses the support rows that must be computed, finds their table rows and slots, and gathers all inputs.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from models import base, embedding, kernels, own_gains, scenario_slots, supports
from models.embedding import Reading
from models.matrices import borrowed
from state import config
from state.kernels import Plain, kernel, plain

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
F32 = npt.NDArray[np.float32]


class Query(NamedTuple):
    """The rows of a minibatch themselves: ids (R, F), raw numbers (R, D), their table rows (R, F) and slots (R,)."""

    ids: U64
    x: F32
    rows: I32
    slot: I64


class Entered(NamedTuple):
    """R query rows and, behind them, the V support rows that are none of them."""

    inputs: F32
    """(R + V, row) as gathered."""
    read: F32
    """(R + V, row) as the rows' scenarios read them (`models.own_gains`), `inputs` where there are no gains."""
    slot: I64
    """(R + V,)"""
    earned: F32
    """(R + V,) how far the slots' own parameters count (`models.scenario_slots`)."""
    found: supports.Distinct
    extra_rows: I32
    """(V, F) table rows of the support rows."""
    s_label: F32
    """(U, O) labels of the distinct support rows."""


class _Support(NamedTuple):
    """Of a batch, see `base.Batch`."""

    ids: U64
    x: F32
    label: F32
    counts: I64


class _Known(NamedTuple):
    """Where ids have their rows (`id_map`) and scenarios their slots; `column`: of the scenario's ids, or -1."""

    field_of: I64
    salts: U64
    keys: U64
    values: I32
    column: int
    sorted: U64
    order: I64


class _Owned(NamedTuple):
    """What belongs to scenarios: rows of each slot, what they are weighed against, gains, if any, and an embedding's width."""

    rows: I64
    prior: float
    value: F32
    width: int


_NO_GAINS: F32 = np.zeros((0, 0), np.float32)


def enter(
    batch: base.Batch, query: Query, codes: I64, settings: config.MetaLearning, table: embedding.Table,
    slots: scenario_slots.Slots, column: int, learn: bool, gains: own_gains.Gains | None = None,
) -> Entered:  # fmt: skip
    """Inputs of a minibatch whose lists have modes `codes` (L,); `column`: of the scenario's ids, or -1 where there is none.

    `learn`: as in `embedding.Table.gather`, for the query rows. `gains` turn what was gathered into what is read.
    """
    ids = table.map
    known = _Known(ids.field_of, ids.salts, ids.keys, ids.values, column, slots.sorted, slots.order)
    counts = np.ascontiguousarray(batch.n_support, np.int64)
    support = _Support(plain(batch.s_ids), plain(batch.s_x), plain(batch.s_label), counts)
    reading = table.reading(query.rows if learn else None)
    owned = (slots.rows, slots.prior, _NO_GAINS, 1) if gains is None else (slots.rows, slots.prior, gains.value, gains.width)
    inputs, read, slot, earned, rows, label, chosen = _enter(
        tuple(reading), tuple(known), tuple(query), tuple(support), codes, settings.min_support, settings.support_rows,
        table.row, learn, owned,
    )  # fmt: skip
    return Entered(inputs, read, slot, earned, supports.aged(settings, batch, supports.Distinct(*chosen)), rows, label)


@kernel
def _enter(
    to_read: Plain, to_find: Plain, asked: Plain, given: Plain, codes: I64, least: int, cap: int, row: int, learn: bool,
    to_own: Plain,
) -> tuple[F32, F32, I64, F32, I32, F32, tuple[I64, I32, I64, I64, I64]]:  # fmt: skip
    """What `Entered` has, in its order, and last the arrays of `Distinct`."""
    reading, known = borrowed(Reading(*to_read)), borrowed(_Known(*to_find))
    query, support = borrowed(Query(*asked)), borrowed(_Support(*given))
    chosen = supports.choose(query.ids, query.x, support.ids, support.x, support.label, support.counts, codes, least, cap)
    first, extra = chosen[0], chosen[3]
    n, more = len(query.rows), len(extra)
    inputs, slot = np.empty((n + more, row), np.float32), np.empty(n + more, np.int64)
    slot[:n] = query.slot
    embedding.read(reading, query.rows, query.x, query.slot, inputs[:n], learn)
    rows = np.empty((more, query.ids.shape[1]), np.int32)
    if more > 0:
        ids, x = np.empty((more, query.ids.shape[1]), np.uint64), np.empty((more, query.x.shape[1]), np.float32)
        for k in range(more):
            ids[k], x[k] = support.ids[extra[k]], support.x[extra[k]]
        kernels.find(ids, known.field_of, known.salts, known.keys, known.values, rows)
        slot[n:] = 0
        if known.column >= 0:
            slot[n:] = scenario_slots.find(ids[:, known.column], known.sorted, known.order)
        embedding.read(reading, rows, x, slot[n:], inputs[n:], False)
    label = np.empty((len(first), support.label.shape[1]), np.float32)
    for k in range(len(first)):
        label[k] = support.label[first[k]]
    owned, read = borrowed(_Owned(*to_own)), inputs
    if len(owned.value):
        turned = np.empty_like(inputs)
        if own_gains.forward(inputs, slot, owned.value, owned.width, turned):
            read = turned
    return inputs, read, slot, scenario_slots.earned(slot, owned.rows, owned.prior), rows, label, chosen
