"""Packed columns, the value of every derived topic: a short msgpack header and little-endian arrays.

Layout: u32 header length, msgpack header, zero padding to 8 bytes, then each column, each padded to 8 bytes.
The header is a map with `v` (schema version), `cols` ([[name, dtype, [shape]], ...]) and the caller's own keys.
Reading needs `numpy.frombuffer` only: no loop over rows, no copy.
"""

import math
import struct
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

VERSION = 1
Columns = dict[str, npt.NDArray[Any]]

# Only these: numpy would evaluate other texts, and a damaged one raises far more than ValueError.
_DTYPES = {
    np.dtype(code).str: np.dtype(code) for code in ("?", "i1", "u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f4", "<f8")
}

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(dict[str, Any]).decode


class UnreadableColumns(ValueError):
    """The bytes are no packed columns of a schema version that this build reads."""


def pack(columns: Columns, **head: object) -> bytes:
    """Pack arrays of any shape with a header.

    Arrays must be of a little-endian (or one-byte) dtype; they are made contiguous when they are not.
    """
    described = [[name, a.dtype.str, list(a.shape)] for name, a in columns.items()]
    header = _encode({"v": VERSION, **head, "cols": described})
    parts: list[bytes] = [struct.pack("<I", len(header)), header, bytes(-(4 + len(header)) % 8)]
    for array in columns.values():
        body = array.tobytes()
        parts += [body, bytes(-len(body) % 8)]
    return b"".join(parts)


def known(optional: Columns) -> Columns:
    """Those of some columns of floats that are not NaN throughout: a column that says nothing is not sent."""
    return {name: array for name, array in optional.items() if not np.isnan(array).all()}


def unpack(buffer: bytes) -> tuple[dict[str, Any], Columns]:
    """Return (header, columns); the arrays are read-only views of `buffer`.

    Raises:
        UnreadableColumns: truncated or foreign bytes, or a newer schema version.
    """
    try:
        (length,) = struct.unpack_from("<I", buffer)
        head = _decode(buffer[4 : 4 + length])
        if head.get("v") != VERSION:
            raise UnreadableColumns(f"schema version {head.get('v')!r}, this build reads {VERSION}; upgrade the reader first")
        at, out = 4 + length + (-(4 + length) % 8), {}
        for name, dtype, shape in head["cols"]:
            if not all(type(length) is int and length >= 0 for length in shape):
                raise UnreadableColumns(f"not packed columns: shape {shape!r:.100} of {name!r:.100}")
            array = np.frombuffer(buffer, _DTYPES[dtype], math.prod(shape), at).reshape(shape)
            out[name] = array
            at += array.nbytes + (-array.nbytes % 8)
    except (struct.error, msgspec.MsgspecError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, UnreadableColumns):
            raise
        raise UnreadableColumns(f"not packed columns: {error}") from error
    return head, out
