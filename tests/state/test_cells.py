from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st

from state import cells

LAYOUT = cells.Layout((cells.Window("all"), cells.Window("decay", 4000.0), cells.Window("last", 3.0)), 3)
F64 = npt.NDArray[np.float64]
EVENTS = st.lists(
    st.tuples(st.integers(1, 60_000), st.sampled_from(["shown", "acted"]), st.floats(0, 1)), min_size=0, max_size=12
)
Event = tuple[int, str, float]


def one(event: Event) -> F64:
    """The delta of one event: an exposure that expects a rate, or an action."""
    ts, kind, rate = event
    cell = np.zeros(LAYOUT.width)
    cell[0] = ts
    cell[1] = ts if kind == "shown" else 0
    block = (1.0, 0.0, rate) if kind == "shown" else (0.0, 1.0, 0.0)
    cell[cells.HEAD :] = np.tile(block, len(LAYOUT.windows))
    return cell


def merged(base: F64, delta: F64) -> F64:
    out = base.copy()
    cells.merge(out, delta, LAYOUT.codes(), LAYOUT.sizes(), LAYOUT.columns)
    return out


def total(events: list[Event], split: Callable[[int], bool] = lambda _: False) -> F64:
    """The sum of events, in groups that start where `split` says, summed by themselves first."""
    out, group = np.zeros(LAYOUT.width), np.zeros(LAYOUT.width)
    for i, event in enumerate(events):
        if split(i):
            out, group = merged(out, group), np.zeros(LAYOUT.width)
        group = merged(group, one(event))
    return merged(out, group)


@given(EVENTS, EVENTS, EVENTS)
def test_merging_is_associative(a: list[Event], b: list[Event], c: list[Event]) -> None:
    x, y, z = total(a), total(b), total(c)
    np.testing.assert_allclose(merged(merged(x, y), z), merged(x, merged(y, z)), rtol=1e-9, atol=1e-12)


@given(EVENTS)
def test_nothing_is_the_unit_on_both_sides(a: list[Event]) -> None:
    x, zero = total(a), np.zeros(LAYOUT.width)
    assert merged(x, zero).tobytes() == x.tobytes()
    assert merged(zero, x).tobytes() == x.tobytes()


@given(EVENTS, st.sets(st.integers(0, 11)))
def test_any_batching_of_deltas_equals_counting_one_by_one(events: list[Event], starts: set[int]) -> None:
    np.testing.assert_allclose(total(events, lambda i: i in starts), total(events), rtol=1e-9, atol=1e-12)


@given(EVENTS)
def test_a_cell_is_the_weighted_sum_of_its_events(events: list[Event]) -> None:
    newest = max([t for t, _, _ in events], default=0)
    expected = np.zeros((3, 3))
    for i, (ts, kind, rate) in enumerate(events):
        later = sum(k == "shown" for _, k, _ in events[i + 1 :])
        for w, weight in enumerate((1.0, 2.0 ** (-(newest - ts) / 4000.0), (2 / 3) ** later)):
            expected[w] += weight * np.array((1.0, 0.0, rate) if kind == "shown" else (0.0, 1.0, 0.0))
    cell = total(events)
    assert (cell[0], cell[1]) == (newest, max([t for t, k, _ in events if k == "shown"], default=0))
    np.testing.assert_allclose(cell[cells.HEAD :].reshape(3, 3), expected, rtol=1e-9, atol=1e-12)


def test_without_windows_that_age_the_order_does_not_matter() -> None:
    events = [(5, "shown", 0.25), (3, "acted", 0.0), (9, "shown", 0.5)]
    counted = slice(cells.HEAD, cells.HEAD + LAYOUT.columns)
    assert total(events)[counted].tolist() == total(events[::-1])[counted].tolist() == [2.0, 1.0, 0.75]
