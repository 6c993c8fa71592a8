"""Commands for Redis in RESP, built in bulk: a matrix of bytes for all keys of a call, no Python loop over keys."""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
Bytes = npt.NDArray[np.uint8]


def bulk(value: bytes) -> bytes:
    """One bulk string."""
    return b"$%d\r\n%s\r\n" % (len(value), value)


def command(*words: bytes) -> bytes:
    """One whole command."""
    return b"*%d\r\n%s" % (len(words), b"".join([bulk(w) for w in words]))


def keys(prefix: bytes, ids: U64) -> Bytes:
    """Bulk strings of the keys `prefix` + 8 little-endian bytes, one row a key."""
    head = b"$%d\r\n%s" % (len(prefix) + 8, prefix)
    out = np.empty((len(ids), len(head) + 10), np.uint8)
    out[:, : len(head)] = np.frombuffer(head, np.uint8)
    out[:, len(head) : -2] = np.ascontiguousarray(ids, "<u8").view(np.uint8).reshape(len(ids), 8)
    out[:, -2:] = (13, 10)
    return out


def mgets(rows: Bytes, most: int) -> list[bytes]:
    """MGET commands of at most `most` keys each, over rows made by `keys`."""
    chunks = [rows[at : at + most] for at in range(0, len(rows), most)]
    return [b"*%d\r\n$4\r\nMGET\r\n%s" % (len(c) + 1, c.tobytes()) for c in chunks]


def sets(prefix: bytes, ids: U64, values: Sequence[bytes], ttl_ms: int) -> list[bytes]:
    """The pieces of one SET key value PX ttl per id."""
    rows, width = keys(prefix, ids).tobytes(), len(prefix) + 8
    step = len(b"$%d\r\n" % width) + width + 2
    tail = b"\r\n$2\r\nPX\r\n" + bulk(b"%d" % ttl_ms)
    out: list[bytes] = []
    for i, value in enumerate(values):
        out += (b"*5\r\n$3\r\nSET\r\n", rows[i * step : (i + 1) * step], b"$%d\r\n" % len(value), value, tail)
    return out


def evalsha(sha: bytes, named: Sequence[bytes], sections: Sequence[Bytes], arguments: Iterable[bytes]) -> list[bytes]:
    """The pieces of EVALSHA: `named` keys, then all keys of `sections` (rows made by `keys`), then arguments."""
    n_keys, tail = len(named) + sum(map(len, sections)), list(arguments)
    head = b"*%d\r\n$7\r\nEVALSHA\r\n%s%s" % (3 + n_keys + len(tail), bulk(sha), bulk(b"%d" % n_keys))
    out = [head, *map(bulk, named), *(s.tobytes() for s in sections)]
    for argument in tail:
        out += (b"$%d\r\n" % len(argument), argument, b"\r\n")
    return out
