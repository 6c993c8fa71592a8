"""Which attributes events really carry: a source that nobody sends, misspelt perhaps, is a constant column and no error."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from state import ids, spec

LEAST_ROWS = 10_000
"""Rows after which a source that none of them carried is called missing."""


class _Column(NamedTuple):
    """Where a source's values are: an id column with the id of an absent value, or, without one, a column of numbers."""

    at: int
    absent: np.uint64 | None


class Presence:
    """Rows that carried each attribute which the feature spec reads, since this worker began."""

    def __init__(self, features: spec.Features) -> None:
        self._columns: dict[str, _Column] = {}
        for category, column in zip(features.categories, spec.id_columns(features), strict=True):
            # A multi-valued column is filled from the left; a single one has the id of the empty text where nothing was said.
            absent = ids.PAD if column.width > 1 else ids.of("")
            self._columns.setdefault(category.source, _Column(column.start, np.uint64(absent)))
        for k, number in enumerate(features.numbers):
            self._columns.setdefault(number.source, _Column(k, None))
        self._columns = {name: c for name, c in self._columns.items() if name.startswith(("user.", "context.", "item."))}
        self.rows = 0
        self.present = dict.fromkeys(self._columns, 0)
        self._told = False

    def add(self, matrix: npt.NDArray[np.uint64], numbers: npt.NDArray[np.float32]) -> None:
        """Count rows: ids (R, F) and numbers as sent (R, N)."""
        self.rows += len(matrix)
        for name, (at, absent) in self._columns.items():
            there = ~np.isnan(numbers[:, at]) if absent is None else matrix[:, at] != absent
            self.present[name] += int(np.count_nonzero(there))

    def missing(self) -> list[str]:
        """Sources that none of at least `LEAST_ROWS` rows carried; told once."""
        if self._told or self.rows < LEAST_ROWS:
            return []
        self._told = True
        return [name for name, rows in self.present.items() if not rows]
