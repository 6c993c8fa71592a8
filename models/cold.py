"""First values for ids that nobody has seen: a generator maps an item's attributes to its row (Meta-Embedding, Pan et al. 2019).

With `embedding.cold = "meta"` the item's row, its embedding and its first-order weight, begins as a linear map of what the model
reads of its attributes, their embeddings and standardised numbers, and of 1; an item without a row of its own is read so as well,
in training and in serving. The map starts at zero. What it learns from is the learner's (`learner.cold_items`).
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from models import base, embedding
from state import config

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
F32 = npt.NDArray[np.float32]
WEIGHT = "cold.weight"


class Layout(NamedTuple):
    """Where a generator reads and writes: `column` of the id matrix, `field` of the item's shared row, and in gathered rows."""

    column: int
    field: int
    reads: I64
    """(A,) embeddings of the item's attributes, then its numbers."""
    writes: I64
    """(E + 1,) the item's embedding and first-order weight."""

    @property
    def shape(self) -> tuple[int, int]:
        """Of the generator's weight: (A + 1, E + 1)."""
        return len(self.reads) + 1, len(self.writes)


def layout(settings: config.Config) -> Layout | None:
    """The generator that a configuration asks for; None without one.

    Raises:
        ConfigError: no category is the item's id, or the item has no attribute.
    """
    if settings.embedding.cold == "off":
        return None
    geometry, columns = base.geometry(settings), embedding.columns(settings)
    spans = [geometry.span(c.name) for c in settings.features.categories if _attribute(c.source)]
    reads = [np.arange(span.start, span.stop) for span in spans]
    numbers = [geometry.embedded + at for at, n in enumerate(settings.features.numbers) if _attribute(n.source)]
    if geometry.item < 0 or not (reads or numbers):
        raise config.ConfigError(
            'embedding.cold = "meta" needs a category with source "item_id", and categories or numbers with source "item.X"'
        )
    span = geometry.span(geometry.categories[geometry.item])
    column = columns.of(geometry.item)
    first = geometry.row - len(geometry.categories) + geometry.item
    return Layout(
        column, int(columns.field_of[column]), np.concatenate([*reads, np.array(numbers, np.int64)]),
        np.r_[np.arange(span.start, span.stop), first],
    )  # fmt: skip


def _attribute(source: str) -> bool:
    return source.startswith("item.")


def read(layout: Layout, inputs: F32) -> F32:
    """(n, A + 1) what the generator reads of gathered rows (n, row)."""
    return np.concatenate([inputs[:, layout.reads], np.ones((len(inputs), 1), np.float32)], 1)


def fill(layout: Layout, weight: F32, rows: I32, inputs: F32) -> None:
    """Write generated rows into gathered rows (n, row) whose item, by table rows (n, F), has no row of its own."""
    unknown = np.flatnonzero(rows[:, layout.column] == layout.field)
    if len(unknown):
        inputs[np.ix_(unknown, layout.writes)] = read(layout, inputs[unknown]) @ weight
