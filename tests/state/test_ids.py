import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from state import ids

U64 = st.integers(0, 2**64 - 1)


@pytest.mark.parametrize(
    ("value", "expected"), [("", 13020603013274838756), ("item 1", 6144745251313264031), (42, 8820412187630416983)]
)
def test_ids_never_change_between_versions(value: str | int, expected: int) -> None:
    assert ids.of(value) == expected


@given(st.integers(-(2**70), 2**70))
def test_a_whole_number_has_the_id_of_its_text_whatever_its_type(value: int) -> None:
    assert ids.of(value) == ids.of(str(value))
    if abs(value) < 2**53:
        assert ids.of(float(value)) == ids.of(value)


@given(st.lists(st.text() | st.integers() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False)))
def test_the_cache_answers_as_the_function_however_small_it_is(values: list[str | int | bool | float]) -> None:
    cache = ids.Ids(capacity=3)
    assert [cache[v] for v in values] == [ids.of(v) for v in values]
    assert len(cache) <= 3


def test_text_that_is_no_unicode_has_an_id() -> None:
    assert 0 <= ids.of("\ud800") < ids.PAD


@given(st.lists(st.tuples(U64, U64), min_size=1))
def test_mix_is_elementwise_and_broadcasts(pairs: list[tuple[int, int]]) -> None:
    a, b = np.array(pairs, np.uint64).T
    together = ids.mix(a, b)
    assert together.dtype == np.uint64
    assert together.tolist() == [int(ids.mix(x, y)) for x, y in pairs]
    assert ids.mix(a, b[0]).tolist() == ids.mix(a, np.full(len(a), b[0])).tolist()


def test_mix_spreads_and_depends_on_the_order() -> None:
    a = np.arange(1000, dtype=np.uint64)
    table = ids.mix(a[:, None], a[None, :])
    assert len(np.unique(table)) == 1_000_000
    assert ids.mix(1, 2) != ids.mix(2, 1)
