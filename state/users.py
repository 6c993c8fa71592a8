"""A user's row: the last requests, which give an action its scenario, and the last actions, which feed `recent` features."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from state.kernels import kernel

REQUESTS, ACTIONS = 16, 20
"""`ACTIONS` is what is kept at least, and what `recent` numbers look at; a longer behaviour sequence keeps more."""
U64 = npt.NDArray[np.uint64]


class Rings(NamedTuple):
    """The fields of n user rows as arrays (views of one structured array), for kernels.

    `requests` and `actions` (n,) count what was ever pushed; a ring's next place is that count modulo its length.
    Per request: `request`, `scenario` (n, 16), `request_ts` in ms and `request_ids` (n, 16, list-level categories).
    Per action: `item`, `ts` in ms, `kind` (n, A) and `ids` (n, A, item categories, then the scenario if it is kept).
    """

    requests: npt.NDArray[Any]
    request: npt.NDArray[Any]
    scenario: npt.NDArray[Any]
    request_ts: npt.NDArray[Any]
    request_ids: npt.NDArray[Any]
    actions: npt.NDArray[Any]
    item: npt.NDArray[Any]
    ts: npt.NDArray[Any]
    kind: npt.NDArray[Any]
    ids: npt.NDArray[Any]


def dtype(list_columns: int, item_columns: int, actions: int = ACTIONS) -> np.dtype[np.void]:
    """The row of a user whose requests keep `list_columns` ids and whose last `actions` keep `item_columns`."""
    return np.dtype(
        [
            ("requests", "<i8"),
            ("request", "<u8", (REQUESTS,)),
            ("scenario", "<u8", (REQUESTS,)),
            ("request_ts", "<i8", (REQUESTS,)),
            ("request_ids", "<u8", (REQUESTS, list_columns)),
            ("actions", "<i8"),
            ("item", "<u8", (actions,)),
            ("ts", "<i8", (actions,)),
            ("kind", "<i2", (actions,)),
            ("ids", "<u8", (actions, item_columns)),
        ]
    )


def rings(rows: npt.NDArray[Any]) -> Rings:
    """Views of the fields of structured rows."""
    return Rings(*(rows[name] for name in Rings._fields))


@kernel
def find_request(rows: Rings, user: int, request: np.uint64) -> int:
    """The place of `request` in the user's ring, or -1."""
    for place in range(min(rows.requests[user], REQUESTS)):
        if rows.request[user, place] == request:
            return int(place)
    return -1


@kernel
def push_request(rows: Rings, user: int, request: np.uint64, scenario: np.uint64, ts: int) -> int:
    """Remember a request over the oldest one and return its place; the caller writes `request_ids` there."""
    place = rows.requests[user] % REQUESTS
    rows.requests[user] += 1
    rows.request[user, place] = request
    rows.scenario[user, place] = scenario
    rows.request_ts[user, place] = ts
    return int(place)


@kernel
def has_action(rows: Rings, user: int, item: np.uint64, ts: int, kind: int) -> bool:
    """Whether this very action is among the user's last ones: the producer sent it twice."""
    for place in range(min(rows.actions[user], rows.item.shape[1])):
        if rows.item[user, place] == item and rows.ts[user, place] == ts and rows.kind[user, place] == kind:
            return True
    return False


@kernel
def push_action(rows: Rings, user: int, item: np.uint64, ts: int, kind: int) -> int:
    """Remember an action over the oldest one and return its place; the caller writes `ids` there."""
    place = rows.actions[user] % rows.item.shape[1]
    rows.actions[user] += 1
    rows.item[user, place] = item
    rows.ts[user, place] = ts
    rows.kind[user, place] = kind
    return int(place)
