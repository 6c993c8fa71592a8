"""Redis or Valkey (commands of Redis 7) as the store: reads are MGETs built in bulk, counting is one script call with fences.

A `count` holds the server for about 3 us per shared key, so a caller keeps it to a few thousand keys (docs/decisions/0003).
"""

from collections.abc import Sequence
from typing import Any

import hiredis
import numpy as np

from state import redis_connection, redis_script, redis_wire, stores, supports
from state.stores import F64, U64, Bytes

KEYS_PER_READ = 1024
SUPPORTS_PER_READ = 64


class RedisStore:
    """`stores.Store` over one connection. Safe for many tasks of one event loop: a caller that gives up at its own deadline
    (`asyncio.timeout` around a read) leaves the connection usable and the replies of others in place.

    Nothing is opened before the first call. A `count` must not be cancelled: whether it was applied would be unknown.
    """

    def __init__(
        self,
        url: str,
        prefix: str,
        schema: stores.Schema,
        *,
        access: redis_connection.Access = redis_connection.NO_ACCESS,
        timeout_s: float = 5.0,
        patience_s: float = 0.0,
        support_key: bytes = supports.KEY,
    ) -> None:
        """`timeout_s` bounds one reply; `patience_s` is how long a call goes on trying to reach a server that is away.

        `support_key` begins the keys of support sets; those of meta inputs have their own (`state.meta_supports.KEY`).
        """
        self._support_key = support_key
        self.url, self.schema, self._prefix = redis_connection.named(url), schema, prefix.encode()
        self._connection = redis_connection.Connection(url, access, timeout_s, patience_s)
        self._script, self._sha = redis_script.source(schema).encode(), b""
        self._doubtful: tuple[stores.Fence, ...] = ()

    async def close(self) -> None:
        """Close the connection."""
        await self._connection.close()

    async def ping(self) -> None:
        """Reach the server.

        Raises:
            StoreUnavailable: nothing answers.
            StoreRefused: wrong password.
        """
        await self._connection.ask([redis_wire.command(b"PING")])

    def _fence(self, topic: str, partition: int) -> bytes:
        return b"%bf:%b:%d" % (self._prefix, topic.encode(), partition)

    async def fences(self, partitions: Sequence[tuple[str, int]]) -> list[int]:
        """The counted offset of each (topic, partition), -1 where there is none."""
        if not partitions:
            return []
        words = [self._fence(topic, partition) for topic, partition in partitions]
        (found,) = await self._connection.ask([redis_wire.command(b"MGET", *words)])
        return [-1 if value is None else int(value) for value in found]

    async def read(self, wanted: stores.Wanted) -> stores.Found:
        """Read cells, user rows and item attributes; an absent key is all zeros.

        Raises:
            StoreRefused: a value has another length than the schema's: the keys belong to another feature spec.
        """
        sections = [(b"c", ids, 8 * layout.width) for ids, layout in zip(wanted.cells, self.schema.layouts, strict=True)]
        sections += [(b"u", wanted.users, self.schema.user_bytes), (b"a", wanted.items, self.schema.item_bytes)]
        rows = np.concatenate([redis_wire.keys(self._prefix + letter, ids) for letter, ids, _ in sections])
        commands = redis_wire.mgets(rows, KEYS_PER_READ)
        found: list[bytes | None] = []
        for chunk in await self._connection.ask(commands, len(commands)) if commands else []:
            found += chunk
        out, at = [], 0
        for letter, ids, size in sections:
            out.append(self._rows(letter, found[at : at + len(ids)], size))
            at += len(ids)
        kinds = len(self.schema.layouts)
        return stores.Found(tuple(matrix.view(np.float64) for matrix in out[:kinds]), out[kinds], out[kinds + 1])

    def _rows(self, letter: bytes, found: list[bytes | None], size: int) -> Bytes:
        zero = bytes(size)
        values = [zero if value is None else value for value in found]
        for value in values:
            if len(value) != size:
                raise self._foreign(letter.decode(), len(value), size)
        return np.frombuffer(bytearray().join(values), np.uint8).reshape(len(values), size)

    def _foreign(self, what: str, length: int, size: int) -> stores.StoreRefused:
        return stores.StoreRefused(
            f"store {self.url}: a value under {self._prefix.decode()!r}+{what!r} has {length} bytes, this configuration needs "
            f"{size}; the keys belong to another feature spec: set another store.prefix, or delete them and replay"
        )

    async def count(self, counted: stores.Counted) -> tuple[F64, ...]:
        """Apply all of it or nothing, in one script call; see `stores.Store.count`.

        When the connection breaks before the reply it is sent once more; if the fences then refuse it but hold this call's
        offsets, it was applied, and the merged cells are read again. One call at a time.

        Raises:
            Fenced: a fence holds neither what was expected nor, after a lost reply, this call's offset.
            StoreUnavailable: no answer, and it is not known whether it was applied. Calling again with the same argument counts
                once, if it moves a fence.
            StoreRefused: see `read`.
        """
        if counted.fences != self._doubtful:
            try:
                return await self._apply(counted)
            except stores.StoreUnavailable:
                if all(fence.offset == fence.expected for fence in counted.fences):
                    raise
                self._doubtful = counted.fences
        try:
            merged = await self._apply(counted)
        except stores.Fenced:
            held = await self.fences([(fence.topic, fence.partition) for fence in counted.fences])
            if held != [fence.offset for fence in counted.fences]:
                raise
            merged = await self._again(counted)
        self._doubtful = ()
        return merged

    async def _apply(self, counted: stores.Counted) -> tuple[F64, ...]:
        pieces, words = self._sections(counted)
        fences = [self._fence(fence.topic, fence.partition) for fence in counted.fences]
        reply = await self._evalsha(fences, pieces, words)
        if reply[0] == redis_script.WRONG_FENCE:
            raise _fenced(counted, [int(value) for value in reply[1:]])
        if reply[0] == redis_script.FOREIGN:
            raise self._foreign("c", reply[2], 8 * self.schema.layouts[reply[1]].width)
        widths = [layout.width for layout in self.schema.layouts]
        return tuple(np.frombuffer(bytearray(m), np.float64).reshape(-1, w) for m, w in zip(reply[1:], widths, strict=True))

    def _sections(self, counted: stores.Counted) -> tuple[list[Bytes], list[bytes]]:
        """Key rows and arguments (counts, fences, values) of the script."""
        keys, values = [], []
        for (ids, cells), layout in zip(counted.cells, self.schema.layouts, strict=True):
            keys.append(redis_wire.keys(self._prefix + b"c", ids))
            values.append(packed("cells", cells.astype("<f8", copy=False), len(ids), 8 * layout.width))
        for letter, (ids, rows), size in (
            (b"u", counted.users, self.schema.user_bytes),
            (b"a", counted.items, self.schema.item_bytes),
        ):
            keys.append(redis_wire.keys(self._prefix + letter, ids))
            values.append(packed("rows", rows, len(ids), size))
        counts = [b"%d" % len(section) for section in (counted.fences, *keys)]
        moves = [b"%d" % offset for fence in counted.fences for offset in (fence.expected, fence.offset)]
        return keys, [*counts, *moves, *values]

    async def _evalsha(self, fences: list[bytes], sections: list[Bytes], words: list[bytes]) -> list[Any]:
        if not self._sha:
            (self._sha,) = await self._connection.ask([redis_wire.command(b"SCRIPT", b"LOAD", self._script)])
        pieces = redis_wire.evalsha(self._sha, fences, sections, words)
        (reply,) = await self._connection.ask(pieces, repeat=False)
        if isinstance(reply, hiredis.ReplyError):
            self._sha = b""
            return await self._evalsha(fences, sections, words)
        return list(reply)

    async def _again(self, counted: stores.Counted) -> tuple[F64, ...]:
        none = np.zeros(0, np.uint64)
        shared = tuple(none if owned else ids for (ids, _), owned in zip(counted.cells, self.schema.owned, strict=True))
        return (await self.read(stores.Wanted(shared, none, none))).cells

    async def supports(self, tasks: U64) -> list[bytes | None]:
        """The packed support set of each task."""
        commands = redis_wire.mgets(redis_wire.keys(self._prefix + self._support_key, tasks), SUPPORTS_PER_READ)
        if not commands:
            return []
        return [value for chunk in await self._connection.ask(commands, len(commands)) for value in chunk]

    async def put_supports(self, tasks: U64, values: Sequence[bytes], ttl_ms: int) -> None:
        """Replace support sets; each key expires after `ttl_ms`. One call at a time, or a repeated one could undo a later one."""
        if len(tasks):
            await self._connection.ask(redis_wire.sets(self._prefix + self._support_key, tasks, values, ttl_ms), len(tasks))


async def connect(
    url: str,
    prefix: str,
    schema: stores.Schema,
    *,
    access: redis_connection.Access = redis_connection.NO_ACCESS,
    timeout_s: float = 5.0,
    patience_s: float = 0.0,
) -> RedisStore:
    """A store whose server has answered; `RedisStore(...)` itself waits for the first call.

    Raises:
        ValueError: the URL is not understood.
        StoreUnavailable: nothing answers.
        StoreRefused: wrong password.
    """
    store = RedisStore(url, prefix, schema, access=access, timeout_s=timeout_s, patience_s=patience_s)
    try:
        await store.ping()
    except BaseException:
        await store.close()
        raise
    return store


def packed(what: str, values: F64 | Bytes, n: int, size: int) -> bytes:
    """The bytes of `n` rows of `size` bytes.

    Raises:
        ValueError: another shape: a defect of the caller that the script would turn into wrong values.
    """
    out = values.tobytes()
    if len(values) != n or len(out) != n * size:
        raise ValueError(f"{what} of shape {values.shape} do not fit {n} keys of {size} bytes")
    return out


def _fenced(counted: stores.Counted, held: Sequence[int]) -> stores.Fenced:
    wrong = [
        f"{fence.topic}[{fence.partition}]: store holds {now}, expected {fence.expected}"
        for fence, now in zip(counted.fences, held, strict=True)
        if now != fence.expected
    ]
    return stores.Fenced(f"another worker counted this input ({'; '.join(wrong)}); this one no longer owns it and must stop")
