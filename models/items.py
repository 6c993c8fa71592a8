"""The items that two towers may find: which columns are an item's, what a snapshot tells of each, and support sets against them.

An item is known by its columns as they were when it was last shown. A support set for retrieval (T11) is what the user acted on,
each row with rows beside it that have the user's columns of that moment and the columns of an item of the queue, the items
of the stream's newest actions. Which ones is a pure function of the row and the queue: learner and serving draw the same.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models import base, two_tower
from state import config, ids, spec

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
SERVING = ("items.key", "items.ids", "items.x", "items.ts", "items.text", "items.ends", "items.queue")


class Side(NamedTuple):
    """The item's columns of a row: of ids (F'), the one of them that holds the item's id, and of numbers (D')."""

    ids: I64
    item: int
    numbers: I64


class Stock(NamedTuple):
    """N items: their id columns (N, F') and numbers (N, D'), and the places (Q,) of those in the queue, oldest action first."""

    ids: U64
    x: F32
    queue: I64


class Known(NamedTuple):
    """The items of a snapshot. `key` (N,) hashes of their ids, `text` these as they were sent, "" where nobody told; `ts` (N,)
    event times in ms at which they were last shown.
    """

    stock: Stock
    key: U64
    ts: I64
    text: list[str]


def side(settings: config.Config) -> Side | None:
    """The item's columns, None for models other than two towers and where no category holds the item's id."""
    sources = {c.name: c.source for c in settings.features.categories}
    if settings.model.name != "two_tower" or "item_id" not in sources.values():
        return None
    found = two_tower.sides(settings)
    columns = spec.id_columns(settings.features)
    mine = [np.arange(c.start, c.start + c.width) for c in columns if found.get(c.name) == two_tower.ITEM]
    item = next(c.start for c in columns if sources[c.name] == "item_id")
    numbers = [i for i, name in enumerate(spec.number_names(settings.features)) if found.get(name) == two_tower.ITEM]
    return Side(np.concatenate(mine), item, np.array(numbers, np.int64))


def known(side: Side, arrays: Mapping[str, npt.NDArray[Any]]) -> Known:
    """The items that a snapshot's arrays tell of.

    Raises:
        ValueError: an array is missing or does not fit the configuration.
    """
    missing = [name for name in SERVING if name not in arrays]
    if missing:
        raise ValueError(f"snapshot lacks {', '.join(missing)}; it was written by another version or is not whole")
    key, ids_, x, ts, text, ends, queue = (np.array(arrays[name]) for name in SERVING)
    rows = len(key)
    if ids_.shape != (rows, len(side.ids)) or x.shape != (rows, len(side.numbers)):
        raise ValueError(f"snapshot tells of items by {ids_.shape[1:]} ids and {x.shape[1:]} numbers; use its own configuration")
    return Known(Stock(ids_, x, queue), key, ts, _texts(text, ends))


def packed(text: list[str]) -> tuple[npt.NDArray[np.uint8], I64]:
    """Texts as one array of bytes and where each ends."""
    raw = [part.encode() for part in text]
    return np.frombuffer(b"".join(raw), np.uint8), np.cumsum([len(part) for part in raw], dtype=np.int64)


def _texts(text: npt.NDArray[np.uint8], ends: I64) -> list[str]:
    raw, at = text.tobytes(), ends.tolist()
    return [raw[start:end].decode() for start, end in zip([0, *at], at, strict=False)]


def replaced(side: Side, rows: tuple[U64, F32], items: tuple[U64, F32]) -> tuple[U64, F32]:
    """Rows of ids (n, F) and numbers (n, D) with their item's columns from `items`, (n, F') and (n, D')."""
    ids_, x = np.array(rows[0]), np.array(rows[1])
    ids_[:, side.ids], x[:, side.numbers] = items
    return ids_, x


def against_queue(side: Side, stock: Stock, support: base.Support, negatives: int) -> base.Support:
    """The rows of a support set that were acted on, labelled 1, each followed by `negatives` of the queue, labelled 0.

    Rows with an item of the queue have the time and the user's columns of the row that they follow; without a queue, there are
    none.
    """
    acted = np.flatnonzero(support.label[:, 0] > 0)
    each = 1 + negatives if len(stock.queue) else 1
    of = np.repeat(acted, each)
    rows, x, label = support.ids[of], support.x[of], np.zeros((len(of), 1), np.float32)
    label[::each] = 1
    if each > 1 and len(of):
        drawn = np.arange(len(of)) % each > 0
        seed = ids.mix(rows[:, side.item], support.ts[of].astype(np.uint64) if len(support.ts) else 0)
        place = ids.mix(seed, np.arange(len(of)) % each) % np.uint64(len(stock.queue))
        item = stock.queue[place[drawn].astype(np.int64)]
        rows[drawn], x[drawn] = replaced(side, (rows[drawn], x[drawn]), (stock.ids[item], stock.x[item]))
    return base.Support(rows, x, label, support.ts[of] if len(support.ts) else support.ts)


def supported(side: Side, stock: Stock, batch: base.Batch, negatives: int) -> base.Batch:
    """A minibatch with the support set of every list against the queue."""
    whole = against_queue(side, stock, base.Support(batch.s_ids, batch.s_x, batch.s_label, batch.s_ts), negatives)
    lists = np.repeat(np.arange(len(batch.n_support)), batch.n_support)[batch.s_label[:, 0] > 0]
    each = len(whole.ids) // max(len(lists), 1)
    n_support = np.bincount(lists, minlength=len(batch.n_support)) * each
    return batch._replace(n_support=n_support, s_ids=whole.ids, s_x=whole.x, s_label=whole.label, s_ts=whole.ts)


def alone(side: Side, items: tuple[U64, F32], widths: tuple[int, int]) -> tuple[U64, F32]:
    """Rows of `widths` (F, D) of items (n, F') and (n, D') that nobody is shown: all other columns are absent."""
    n = len(items[0])
    nobody = np.full((n, widths[0]), ids.PAD, np.uint64), np.full((n, widths[1]), np.nan, np.float32)
    return replaced(side, nobody, items)
