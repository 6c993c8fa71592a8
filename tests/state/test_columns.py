import struct

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from state import columns
from state.columns import UnreadableColumns

DTYPES = st.sampled_from(["<u8", "<i8", "<i4", "<i2", "<f4", "<f8", "|u1", "|b1"])
ARRAYS = DTYPES.flatmap(
    lambda dtype: hnp.arrays(np.dtype(dtype), hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=7))
)

# Schema version 1, written on 2026-11-22. It must be readable for ever: never change it, add the next version's beside it.
GOLDEN_1 = bytes.fromhex(
    "5900000084a17601a473706563b030313233343536373839616263646566ac77617465726d61726b5f6d73cf0000018bcfe5"
    "6800a4636f6c739393a46974656da33c7538910293a178a33c663492020293a5615f726177a37c7531910300000001000000"
    "00000000ffffffffffffffff0000003f000080bf000000400000807f7b7d0a0000000000"
)


@given(
    st.dictionaries(st.text(min_size=1, max_size=9), ARRAYS, max_size=6),
    st.dictionaries(st.sampled_from("abc"), st.integers(0, 9)),
)
def test_what_is_packed_is_unpacked(arrays: columns.Columns, head: dict[str, int]) -> None:
    found_head, found = columns.unpack(columns.pack(arrays, **head))
    assert {k: found_head[k] for k in head} == head
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@given(st.dictionaries(st.text(min_size=1, max_size=9), ARRAYS, min_size=1, max_size=4))
def test_every_column_starts_at_a_multiple_of_8(arrays: columns.Columns) -> None:
    buffer = columns.pack(arrays)
    base = np.frombuffer(buffer, np.uint8).ctypes.data
    _, found = columns.unpack(buffer)
    assert all((array.ctypes.data - base) % 8 == 0 for array in found.values() if array.size)


def test_reading_copies_nothing_and_cannot_write() -> None:
    buffer = columns.pack({"x": np.arange(5, dtype="<f4")})
    _, found = columns.unpack(buffer)
    assert np.shares_memory(found["x"], np.frombuffer(buffer, np.uint8))
    with pytest.raises(ValueError, match="read-only"):
        found["x"][0] = 1


def test_a_strided_array_is_packed_as_its_values() -> None:
    array = np.arange(12, dtype="<i4").reshape(3, 4)[:, ::2]
    _, found = columns.unpack(columns.pack({"x": array}))
    np.testing.assert_array_equal(found["x"], array)


@given(st.binary(max_size=200))
def test_foreign_bytes_are_refused_and_nothing_else(raw: bytes) -> None:
    with pytest.raises(UnreadableColumns):
        columns.unpack(raw)


@given(st.data())
def test_a_truncated_message_is_refused(data: st.DataObject) -> None:
    buffer = columns.pack({"x": np.arange(9, dtype="<u8"), "y": np.ones((3, 3), "<f4")}, spec="s")
    cut = data.draw(st.integers(0, len(buffer) - 5))
    with pytest.raises(UnreadableColumns):
        columns.unpack(buffer[:cut])


def test_a_newer_version_says_who_must_be_upgraded() -> None:
    header = msgspec.msgpack.encode({"v": columns.VERSION + 1, "cols": []})
    with pytest.raises(UnreadableColumns, match=r"schema version 2, this build reads 1; upgrade the reader first"):
        columns.unpack(struct.pack("<I", len(header)) + header)


def test_an_array_may_not_claim_more_than_the_message_holds() -> None:
    header = msgspec.msgpack.encode({"v": 1, "cols": [["x", "<f8", [1 << 40]]]})
    with pytest.raises(UnreadableColumns):
        columns.unpack(struct.pack("<I", len(header)) + header + bytes(64))


@pytest.mark.parametrize(("dtype", "shape"), [("|O", [1]), (",8", [1]), ("0<f4", [1]), ("<f4", [-1]), ("<f4", ["ab", 9**12])])
def test_a_type_or_shape_that_is_none_of_ours_is_refused(dtype: str, shape: list[object]) -> None:
    header = msgspec.msgpack.encode({"v": 1, "cols": [["x", dtype, shape]]})
    with pytest.raises(UnreadableColumns):
        columns.unpack(struct.pack("<I", len(header)) + header + bytes(64))


def test_the_golden_bytes_of_version_1_read_as_they_did() -> None:
    head, found = columns.unpack(GOLDEN_1)
    assert head["spec"] == "0123456789abcdef"
    assert head["watermark_ms"] == 1_700_000_000_000
    np.testing.assert_array_equal(found["item"], np.array([1, 2**64 - 1], "<u8"))
    np.testing.assert_array_equal(found["x"], np.array([[0.5, -1.0], [2.0, np.inf]], "<f4"))
    np.testing.assert_array_equal(found["a_raw"], np.frombuffer(b"{}\n", np.uint8))


@given(st.integers(0, 10**6), st.integers(1, 255))
def test_a_damaged_byte_is_refused_or_read_as_something_and_never_a_crash(at: int, change: int) -> None:
    damaged = bytearray(GOLDEN_1)
    damaged[at % len(damaged)] ^= change
    try:
        head, found = columns.unpack(bytes(damaged))
    except UnreadableColumns:
        return
    assert head["v"] == columns.VERSION
    assert all(isinstance(array, np.ndarray) for array in found.values())
