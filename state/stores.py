"""What the streams and serving ask of a store. `memory_store` and `redis_store` are the two that pass its contract suite."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from state import cells

U64 = npt.NDArray[np.uint64]
F64 = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]


class Schema(NamedTuple):
    """Shapes that a store needs to know: cell layouts by kind of key, and bytes of a user row and of an item's attributes."""

    layouts: tuple[cells.Layout, ...]
    owned: tuple[bool, ...]
    user_bytes: int
    item_bytes: int


class Wanted(NamedTuple):
    """Keys to read: cells by kind of key, user rows, item attributes."""

    cells: tuple[U64, ...]
    users: U64
    items: U64


class Found(NamedTuple):
    """What was read, in the order asked: cells (n, width) by kind, rows (n, bytes); an absent key is all zeros."""

    cells: tuple[F64, ...]
    users: Bytes
    items: Bytes


class Fence(NamedTuple):
    """All input of (topic, partition) up to and including `offset` is counted; the store must hold `expected` (-1: none)."""

    topic: str
    partition: int
    expected: int
    offset: int


class Counted(NamedTuple):
    """One all-or-nothing call. Per kind of key: keys and, for a shared kind, deltas to merge; for an owned kind, new values.

    Keys are unique within a kind. Every fence that is moved makes the call safe to repeat; one that moves none is not.
    """

    fences: tuple[Fence, ...]
    cells: tuple[tuple[U64, F64], ...]
    users: tuple[U64, Bytes]
    items: tuple[U64, Bytes]


class Fenced(RuntimeError):
    """Another worker counted this input: the partition has a new owner, and this worker must stop."""


class StoreUnavailable(ConnectionError):
    """No answer from the store: nothing listens there, the connection broke, or it took too long. The next call tries again."""

    def __init__(self, url: str, cause: str) -> None:
        super().__init__(f"store {url}: {cause}; check that it runs and that store.url is right (thousandfold doctor)")
        self.url, self.cause = url, cause


class StoreRefused(RuntimeError):
    """The store answered with an error that trying again does not mend: wrong password, foreign values, out of memory."""


class Store(Protocol):
    """Counters, user rows, item attributes, fences and support sets."""

    async def fences(self, partitions: Sequence[tuple[str, int]]) -> list[int]:
        """The counted offset of each (topic, partition), -1 where there is none."""
        ...

    async def read(self, wanted: Wanted) -> Found:
        """Read cells, user rows and item attributes."""
        ...

    async def count(self, counted: Counted) -> tuple[F64, ...]:
        """Apply all of it or nothing, and return the merged cells per kind (an owned kind: an empty array).

        Raises:
            Fenced: a fence does not hold what was expected; nothing was applied.
        """
        ...

    async def supports(self, tasks: U64) -> list[bytes | None]:
        """The packed support set of each task."""
        ...

    async def put_supports(self, tasks: U64, values: Sequence[bytes], ttl_ms: int) -> None:
        """Replace support sets; each key expires after `ttl_ms`."""
        ...
