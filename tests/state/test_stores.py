"""The contract of a store, held by both implementations, and what only a store behind a connection can do wrong."""

import asyncio
import contextlib
import pathlib
import ssl
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np
import pytest
import redis
import trustme
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from state import cells, memory_store, redis_connection, redis_store, stores

ALL = cells.Window("all")
LAYOUTS = (
    cells.Layout((ALL,), 2),
    cells.Layout((ALL, cells.Window("decay", 86_400_000.0), cells.Window("last", 20.0)), 3),
    cells.Layout((ALL, cells.Window("last", 1.0)), 2),
)
SCHEMA = stores.Schema(LAYOUTS, (False, False, True), user_bytes=24, item_bytes=16)
NONE = np.zeros(0, np.uint64)
Opened = Callable[[stores.Schema], contextlib.AbstractAsyncContextManager[stores.Store]]


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@contextlib.asynccontextmanager
async def in_memory(schema: stores.Schema) -> AsyncIterator[stores.Store]:
    yield memory_store.MemoryStore(schema, now_ms)


@contextlib.asynccontextmanager
async def in_redis(
    url: str, schema: stores.Schema, prefix: str | None = None, **options: Any
) -> AsyncIterator[redis_store.RedisStore]:
    store = await redis_store.connect(url, f"{uuid.uuid4().hex}:" if prefix is None else prefix, schema, **options)
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture(params=["memory", "redis"])
def opened(request: pytest.FixtureRequest) -> Opened:
    if request.param == "memory":
        return in_memory
    url = request.getfixturevalue("store_url")
    return lambda schema: in_redis(url, schema)


def u64(*values: int) -> stores.U64:
    return np.array(values, np.uint64)


def counted(
    fences: Sequence[tuple[str, int, int, int]],
    cells_of: Mapping[int, Mapping[int, Sequence[float]]] | None = None,
    users: dict[int, int] | None = None,
    items: dict[int, int] | None = None,
    schema: stores.Schema = SCHEMA,
) -> stores.Counted:
    """Fences as tuples, cells by kind and key, user and item rows by key and the byte that fills them."""

    def rows(given_rows: dict[int, int] | None, size: int) -> tuple[stores.U64, stores.Bytes]:
        held = given_rows or {}
        return u64(*held), np.repeat(np.array(list(held.values()), np.uint8)[:, None], size, 1)

    kinds = []
    for k, layout in enumerate(schema.layouts):
        held = (cells_of or {}).get(k, {})
        kinds.append((u64(*held), np.array(list(held.values()), np.float64).reshape(len(held), layout.width)))
    return stores.Counted(
        tuple(stores.Fence(*fence) for fence in fences),
        tuple(kinds),
        rows(users, schema.user_bytes),
        rows(items, schema.item_bytes),
    )


def wanted(*kinds: Sequence[int], users: Sequence[int] = (), items: Sequence[int] = ()) -> stores.Wanted:
    return stores.Wanted(tuple(u64(*kind) for kind in kinds), u64(*users), u64(*items))


def test_what_was_never_written_is_zero(opened: Opened) -> None:
    async def scenario() -> None:
        async with opened(SCHEMA) as store:
            found = await store.read(wanted([1, 2], [3], [], users=[4], items=[5, 6]))
            assert [c.shape for c in found.cells] == [(2, 4), (1, 11), (0, 6)]
            assert [c.dtype for c in found.cells] == [np.float64] * 3
            assert found.users.shape == (1, 24)
            assert found.items.shape == (2, 16)
            assert not any(c.any() for c in found.cells)
            assert not found.users.any()
            assert not found.items.any()
            assert await store.fences([("impressions", 0), ("clicks", 3)]) == [-1, -1]
            assert await store.supports(u64(1, 2)) == [None, None]

    asyncio.run(scenario())


def test_shared_cells_add_up_and_owned_ones_are_replaced(opened: Opened) -> None:
    async def scenario() -> None:
        async with opened(SCHEMA) as store:
            first = {0: {7: [10, 10, 1, 0]}, 2: {9: [5, 5, 1, 1, 1, 1]}}
            second = {0: {7: [20, 0, 2, 1], 8: [1, 1, 1, 1]}, 2: {9: [6, 6, 9, 9, 9, 9]}}
            await store.count(counted([("t", 0, -1, 4)], first, users={1: 3}, items={2: 5}))
            merged = await store.count(counted([("t", 0, 4, 8)], second, users={1: 4}))
            assert merged[0].tolist() == [[20, 10, 3, 1], [1, 1, 1, 1]]
            assert merged[1].shape == (0, 11)
            assert merged[2].shape == (0, 6)
            found = await store.read(wanted([7, 8], [], [9], users=[1], items=[2]))
            assert found.cells[0].tolist() == merged[0].tolist()
            assert found.cells[2].tolist() == [[6, 6, 9, 9, 9, 9]]
            assert set(found.users[0]) == {4}
            assert set(found.items[0]) == {5}
            assert await store.fences([("t", 0)]) == [8]

    asyncio.run(scenario())


def test_a_second_workers_count_is_refused_and_nothing_of_it_is_applied(opened: Opened) -> None:
    async def scenario() -> None:
        async with opened(SCHEMA) as store:
            delta = {0: {7: [1, 1, 1, 1]}, 2: {9: [1, 1, 1, 1, 1, 1]}}
            await store.count(counted([("t", 0, -1, 4), ("t", 1, -1, 2)], delta, users={1: 1}))
            stale = counted([("t", 1, 2, 3), ("t", 0, -1, 5)], delta, users={1: 9}, items={2: 9})
            with pytest.raises(stores.Fenced, match=r"t\[0\].*holds 4, expected -1"):
                await store.count(stale)
            found = await store.read(wanted([7], [], [9], users=[1], items=[2]))
            assert found.cells[0][0].tolist() == [1, 1, 1, 1]
            assert set(found.users[0]) == {1}
            assert not found.items.any()
            assert await store.fences([("t", 0), ("t", 1)]) == [4, 2]

    asyncio.run(scenario())


def test_repeating_a_count_that_was_answered_is_fenced(opened: Opened) -> None:
    async def scenario() -> None:
        async with opened(SCHEMA) as store:
            call = counted([("t", 0, -1, 4)], {0: {7: [1, 1, 1, 1]}})
            await store.count(call)
            with pytest.raises(stores.Fenced):
                await store.count(call)
            assert (await store.read(wanted([7], [], []))).cells[0][0, 2] == 1

    asyncio.run(scenario())


def test_many_keys_in_one_call_are_all_counted(opened: Opened) -> None:
    async def scenario() -> None:
        async with opened(SCHEMA) as store:
            n = 9_001
            keys, deltas = np.arange(n, dtype=np.uint64), np.arange(4.0 * n).reshape(n, 4)
            rows = np.arange(n, dtype=np.uint64)[:, None].repeat(3, 1).view(np.uint8)
            empty = [(NONE, np.zeros((0, layout.width))) for layout in LAYOUTS[1:]]
            for expected, offset in ((-1, 1), (1, 2)):
                fences = (stores.Fence("t", 0, expected, offset),)
                call = stores.Counted(fences, ((keys, deltas), *empty), (keys, rows), (NONE, np.zeros((0, 16), np.uint8)))
                merged = await store.count(call)
            expected_cells = np.concatenate([deltas[:, :2], 2 * deltas[:, 2:]], 1)
            assert (merged[0] == expected_cells).all()
            found = await store.read(stores.Wanted((keys[::-1], NONE, NONE), keys, NONE))
            assert (found.cells[0] == expected_cells[::-1]).all()
            assert (found.users == rows).all()

    asyncio.run(scenario())


def test_values_that_do_not_fit_their_keys_are_refused_before_anything_is_sent(store_url: str) -> None:
    async def scenario() -> None:
        async with in_redis(store_url, SCHEMA) as store:
            call = counted([("t", 0, -1, 4)], {0: {7: [1, 1, 1, 1]}})
            short = call._replace(users=(u64(1, 2), np.zeros((1, 24), np.uint8)))
            with pytest.raises(ValueError, match="do not fit 2 keys of 24 bytes"):
                await store.count(short)
            assert await store.fences([("t", 0)]) == [-1]

    asyncio.run(scenario())


def test_support_sets_are_replaced_and_expire(opened: Opened) -> None:
    async def scenario() -> None:
        async with opened(SCHEMA) as store:
            await store.put_supports(u64(1, 2), [b"old", b""], 3_600_000)
            await store.put_supports(u64(1, 3), [b"new\r\n", b"brief"], 3_600_000)
            assert await store.supports(u64(3, 1, 4, 2)) == [b"brief", b"new\r\n", None, b""]
            await store.put_supports(u64(3), [b"brief"], 1)
            async with asyncio.timeout(10):
                while (await store.supports(u64(3)))[0] is not None:  # noqa: ASYNC110 a key's expiry tells nobody
                    await asyncio.sleep(0.005)
            assert await store.supports(u64(3, 1)) == [None, b"new\r\n"]

    asyncio.run(scenario())


def test_the_memory_store_expires_by_the_clock_it_was_given() -> None:
    clock = [1_000]
    store = memory_store.MemoryStore(SCHEMA, lambda: clock[0])

    async def scenario() -> None:
        await store.put_supports(u64(1), [b"x"], 500)
        clock[0] = 1_499
        assert await store.supports(u64(1)) == [b"x"]
        clock[0] = 1_500
        assert await store.supports(u64(1)) == [None]

    asyncio.run(scenario())


KEYS = st.integers(0, 5).map(lambda i: (i * 0x9E3779B97F4A7C15 + 2**64 - 6) % 2**64)
WHOLE = st.integers(0, 10_000).map(float)
NUMBERS = st.one_of(WHOLE, st.floats(0, 1e13), st.floats(0, 1))


def of_kind(kind: int, key: int) -> int:
    """Cells of all kinds share one name space; the callers' hashes keep them apart."""
    return key ^ (kind << 40)


def cells_for(kind: int) -> st.SearchStrategy[dict[int, list[float]]]:
    width = LAYOUTS[kind].width
    return st.dictionaries(
        KEYS.map(lambda key: of_kind(kind, key)), st.lists(NUMBERS, min_size=width, max_size=width), max_size=4
    )


@st.composite
def operations(draw: st.DrawFn) -> tuple[str, Any]:
    kind = draw(st.sampled_from(["count", "count", "read", "put", "supports", "stale"]))
    if kind in {"count", "stale"}:
        given_cells = {k: draw(cells_for(k)) for k in range(len(LAYOUTS))}
        rows = st.dictionaries(KEYS, st.integers(0, 255), max_size=3)
        return kind, (draw(st.integers(0, 2)), draw(st.integers(1, 9)), given_cells, draw(rows), draw(rows))
    if kind == "put":
        return kind, draw(st.dictionaries(KEYS, st.binary(max_size=30), max_size=3))
    return kind, draw(st.lists(KEYS, max_size=4))


async def apply(store: stores.Store, held: dict[int, int], operation: tuple[str, Any]) -> Any:
    """Run one operation; `held` are the fences of this store as its one worker knows them."""
    kind, what = operation
    if kind in {"count", "stale"}:
        partition, step, given_cells, users, items = what
        expected = held.get(partition, -1)
        fence = ("t", partition, expected + (kind == "stale"), expected + step + 1)
        try:
            merged = await store.count(counted([fence], given_cells, users, items))
        except stores.Fenced:
            return "fenced"
        held[partition] = fence[3]
        return [(m.shape, m.tobytes()) for m in merged]
    if kind == "put":
        return await store.put_supports(u64(*what), list(what.values()), 3_600_000)
    if kind == "supports":
        return await store.supports(u64(*what))
    found = await store.read(wanted(*([of_kind(k, key) for key in what] for k in range(len(LAYOUTS))), users=what, items=what))
    fences = await store.fences([("t", 0), ("t", 1), ("t", 2)])
    return [c.tobytes() for c in found.cells], found.users.tobytes(), found.items.tobytes(), fences


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(operations(), max_size=12))
def test_both_stores_answer_the_same_to_any_sequence_of_operations(store_url: str, sequence: list[tuple[str, Any]]) -> None:
    async def scenario() -> None:
        memory = memory_store.MemoryStore(SCHEMA, now_ms)
        held: tuple[dict[int, int], dict[int, int]] = ({}, {})
        async with in_redis(store_url, SCHEMA) as real:
            for operation in [*sequence, ("read", [0, 1]), ("supports", [0, 1])]:
                assert await apply(memory, held[0], operation) == await apply(real, held[1], operation)

    asyncio.run(scenario())


@st.composite
def layouts(draw: st.DrawFn) -> cells.Layout:
    windows = st.one_of(
        st.just(ALL),
        st.one_of(st.floats(1e7, 1e10), st.floats(1, 1e12)).map(lambda size: cells.Window("decay", size)),
        st.one_of(st.integers(1, 10_000).map(float), st.floats(1, 1e6)).map(lambda size: cells.Window("last", size)),
    )
    return cells.Layout((ALL, *draw(st.lists(windows, max_size=4))), draw(st.one_of(st.integers(1, 6), st.integers(50, 90))))


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(layouts(), st.integers(0, 2**32))
def test_the_script_merges_every_layout_bit_for_bit_as_the_kernel_does(store_url: str, layout: cells.Layout, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, schema = 40, stores.Schema((layout,), (False,), 8, 8)
    empty = (NONE, np.zeros((0, 8), np.uint8))

    def drawn() -> stores.F64:
        out = np.where(rng.random((n, 1)) < 0.5, rng.integers(0, 50, (n, layout.width)), rng.random((n, layout.width)) * 100)
        out[:, :2] = 1.7e12 + rng.integers(0, 10**9, (n, 2))
        out[rng.random(n) < 0.1] = 0.0
        return out.astype(np.float64)

    async def scenario() -> None:
        memory, keys = memory_store.MemoryStore(schema, now_ms), np.arange(n, dtype=np.uint64)
        async with in_redis(store_url, schema) as real:
            for offset in range(3):
                call = stores.Counted((stores.Fence("t", 0, offset - 1, offset),), ((keys, drawn()),), empty, empty)
                want, got = (await memory.count(call))[0], (await real.count(call))[0]
                assert (got.view(np.uint64) == want.view(np.uint64)).all()

    asyncio.run(scenario())


class Proxy:
    """A server in front of the real one. `plan` says what happens to each next chunk of requests; when it is empty, all passes.

    "pass" forwards; "lose request" closes the client instead; "lose reply" lets the server answer, then closes the client;
    "hold" forwards and keeps the reply back until `release` is set; "away" closes the client at once and refuses new ones.
    """

    def __init__(self, upstream: str, tls: ssl.SSLContext | None = None) -> None:
        self.tls = tls
        self.upstream, self.plan, self.release = redis_connection.address(upstream), list[str](), asyncio.Event()
        self.connections = 0
        self._tasks = set[asyncio.Task[None]]()

    async def __aenter__(self) -> Self:
        self.server = await asyncio.start_server(self._client, "127.0.0.1", 0, ssl=self.tls)
        self.url = f"{'rediss' if self.tls else 'redis'}://127.0.0.1:{self.server.sockets[0].getsockname()[1]}/0"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.release.set()
        self.server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.server.wait_closed()

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        address = self.upstream
        if address.path:
            up_reader, up_writer = await asyncio.open_unix_connection(address.path)
        else:
            up_reader, up_writer = await asyncio.open_connection(address.host, address.port)
        try:
            await self._requests(reader, writer, up_reader, up_writer)
        finally:
            self._tasks.discard(task)
            for open_writer in (writer, up_writer):
                open_writer.close()
                with contextlib.suppress(OSError):
                    await open_writer.wait_closed()

    async def _requests(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        up_reader: asyncio.StreamReader,
        up_writer: asyncio.StreamWriter,
    ) -> None:
        while data := await reader.read(1 << 20):
            step = self.plan.pop(0) if self.plan else "pass"
            if step == "lose request":
                return
            up_writer.write(data)
            reply = await up_reader.read(1 << 20)
            if step == "lose reply":
                return
            if step == "hold":
                await self.release.wait()
            writer.write(reply)


@pytest.mark.parametrize("accident", ["lose request", "lose reply"])
def test_a_count_whose_connection_breaks_is_counted_once(store_url: str, accident: str) -> None:
    async def scenario() -> None:
        async with Proxy(store_url) as proxy, in_redis(proxy.url, SCHEMA) as store:
            await store.count(counted([("t", 0, -1, 4)], {0: {7: [1, 1, 1, 0]}}))
            proxy.plan = [accident]
            merged = await store.count(counted([("t", 0, 4, 6), ("t", 1, -1, 0)], {0: {7: [2, 2, 1, 1]}}, users={1: 5}))
            assert merged[0].tolist() == [[2, 2, 2, 1]]
            assert [m.shape for m in merged[1:]] == [(0, 11), (0, 6)]
            assert await store.fences([("t", 0), ("t", 1)]) == [6, 0]
            assert proxy.connections == 2
            merged = await store.count(counted([("t", 0, 6, 7)], {0: {7: [3, 3, 1, 0]}}))
            assert merged[0].tolist() == [[3, 3, 3, 1]]

    asyncio.run(scenario())


@pytest.mark.parametrize("accident", ["lose request", "lose reply"])
def test_a_caller_may_repeat_a_count_of_unknown_outcome_and_it_counts_once(store_url: str, accident: str) -> None:
    async def scenario() -> None:
        async with Proxy(store_url) as proxy, in_redis(proxy.url, SCHEMA) as store:
            await store.count(counted([("t", 0, -1, 4)], {0: {7: [1, 1, 1, 0]}}))
            call = counted([("t", 0, 4, 6)], {0: {7: [2, 2, 1, 1]}})
            proxy.plan = [accident, "lose request"]
            with pytest.raises(stores.StoreUnavailable):
                await store.count(call)
            until = time.monotonic() + 10
            while True:
                try:
                    merged = await store.count(call)
                    break
                except stores.StoreUnavailable:
                    assert time.monotonic() < until
                    await asyncio.sleep(0.02)
            assert merged[0].tolist() == [[2, 2, 2, 1]]

    asyncio.run(scenario())


def test_after_a_lost_reply_another_workers_progress_is_still_a_fence(store_url: str) -> None:
    async def scenario() -> None:
        async with (
            Proxy(store_url) as proxy,
            in_redis(store_url, SCHEMA, "p:") as other,
            in_redis(proxy.url, SCHEMA, "p:") as store,
        ):
            await store.count(counted([("t", 0, -1, 4)], {0: {7: [1, 1, 1, 0]}}))
            await other.count(counted([("t", 0, 4, 9)]))
            proxy.plan = ["lose request"]
            with pytest.raises(stores.Fenced, match="holds 9, expected 4"):
                await store.count(counted([("t", 0, 4, 6)], {0: {7: [2, 2, 1, 1]}}))
            assert (await other.read(wanted([7], [], []))).cells[0][0, 2] == 1

    asyncio.run(scenario())


def test_a_read_given_up_at_its_deadline_leaves_later_replies_in_their_place(store_url: str) -> None:
    async def scenario() -> None:
        async with Proxy(store_url) as proxy, in_redis(proxy.url, SCHEMA) as store:
            await store.put_supports(u64(1, 2), [b"one", b"two"], 3_600_000)
            proxy.plan = ["hold"]
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await store.supports(u64(1))
            later = asyncio.create_task(store.supports(u64(2)))
            await asyncio.sleep(0)
            proxy.release.set()
            assert await later == [b"two"]
            assert proxy.connections == 1

    asyncio.run(scenario())


def test_a_server_that_stays_silent_is_unavailable_and_the_next_call_connects_anew(store_url: str) -> None:
    async def scenario() -> None:
        async with Proxy(store_url) as proxy, in_redis(proxy.url, SCHEMA, timeout_s=0.2) as store:
            await store.put_supports(u64(1), [b"one"], 3_600_000)
            proxy.plan = ["hold"]
            with pytest.raises(stores.StoreUnavailable, match=r"no reply in 0\.2 s"):
                await store.supports(u64(1))
            assert await store.supports(u64(1)) == [b"one"]
            assert proxy.connections == 2

    asyncio.run(scenario())


def test_an_absent_server_is_unavailable_with_url_and_next_step_but_no_password() -> None:
    async def scenario() -> None:
        with pytest.raises(stores.StoreUnavailable) as caught:
            await redis_store.connect("redis://me:secret@127.0.0.1:1/0", "", SCHEMA)
        assert "redis://127.0.0.1:1/0" in str(caught.value)
        assert "store.url" in str(caught.value)
        assert "secret" not in str(caught.value)

    asyncio.run(scenario())


def test_a_patient_store_waits_for_a_server_that_comes_back(store_url: str) -> None:
    async def scenario() -> None:
        async with Proxy(store_url) as proxy, in_redis(proxy.url, SCHEMA, patience_s=20.0) as store:
            await store.put_supports(u64(1), [b"one"], 3_600_000)
            proxy.plan = ["lose request", "lose request", "lose request"]
            assert await store.supports(u64(1)) == [b"one"]
            assert proxy.connections == 4

    asyncio.run(scenario())


def test_a_server_that_forgot_the_script_is_taught_it_again(store_url: str) -> None:
    async def scenario() -> None:
        async with in_redis(store_url, SCHEMA) as store:
            await store.count(counted([("t", 0, -1, 4)], {0: {7: [1, 1, 1, 0]}}))
            with redis.Redis.from_url(store_url) as client:
                client.script_flush()
            merged = await store.count(counted([("t", 0, 4, 5)], {0: {7: [1, 1, 1, 0]}}))
            assert merged[0][0, 2] == 2

    asyncio.run(scenario())


def test_values_of_another_feature_spec_are_refused_and_nothing_is_written(store_url: str) -> None:
    async def scenario() -> None:
        async with in_redis(store_url, SCHEMA, "same:") as store:
            await store.count(counted([("t", 0, -1, 4)], {0: {7: [1, 1, 1, 0]}}))
            wider = SCHEMA._replace(layouts=(cells.Layout((ALL,), 5), *LAYOUTS[1:]))
            async with in_redis(store_url, wider, "same:") as changed:
                with pytest.raises(stores.StoreRefused, match=r"32 bytes.*needs 56.*store\.prefix"):
                    await changed.read(wanted([7], [], []))
                call = counted([("t", 0, 4, 5)], {0: {8: [1] * 7, 7: [1] * 7}}, users={1: 1}, schema=wider)
                with pytest.raises(stores.StoreRefused, match=r"32 bytes.*needs 56"):
                    await changed.count(call)
                assert await changed.fences([("t", 0)]) == [4]
                assert not (await changed.read(wanted([8], [], [], users=[1]))).users.any()

    asyncio.run(scenario())


def test_a_wrong_password_is_refused_not_retried(store_url: str) -> None:
    async def scenario() -> None:
        with pytest.raises(stores.StoreRefused, match=r"AUTH|WRONGPASS"):
            await redis_store.connect(store_url, "", SCHEMA, access=redis_connection.Access("wrong"), patience_s=60.0)

    asyncio.run(scenario())


def test_a_password_and_a_database_are_used(store_url: str) -> None:
    address = redis_connection.address(store_url)
    place = f"unix://{address.path}?db=3" if address.path else f"redis://{address.host}:{address.port}/3"

    async def scenario() -> None:
        with redis.Redis.from_url(store_url) as client:
            client.execute_command("ACL", "SETUSER", "tester", "on", ">sesame", "~*", "+@all")
            try:
                user = place.replace("//", "//tester@", 1)
                async with in_redis(user, SCHEMA, "", access=redis_connection.Access("sesame")) as store:
                    await store.put_supports(u64(1), [b"one"], 3_600_000)
                assert client.exists(b"s" + (1).to_bytes(8, "little")) == 0
            finally:
                client.execute_command("ACL", "DELUSER", "tester")
        with redis.Redis.from_url(place) as third:
            assert third.get(b"s" + (1).to_bytes(8, "little")) == b"one"

    asyncio.run(scenario())


def test_an_encrypted_store_is_used_when_its_authority_is_trusted_and_refused_when_not(
    store_url: str, tmp_path: pathlib.Path
) -> None:
    authority, stranger, tls = trustme.CA(), trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    trusted, other = str(tmp_path / "ca.pem"), str(tmp_path / "stranger.pem")
    authority.cert_pem.write_to_path(trusted)
    stranger.cert_pem.write_to_path(other)

    async def scenario() -> None:
        async with Proxy(store_url, tls) as proxy:
            async with in_redis(proxy.url, SCHEMA, access=redis_connection.Access(ca_file=trusted)) as store:
                await store.put_supports(u64(1), [b"one"], 3_600_000)
                assert await store.supports(u64(1)) == [b"one"]
            with pytest.raises(stores.StoreUnavailable, match="certificate verify failed"):
                await redis_store.connect(proxy.url, "", SCHEMA, access=redis_connection.Access(ca_file=other))

    asyncio.run(scenario())


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "redis://", "unix://", "redis://127.0.0.1:1/first"])
def test_an_url_that_is_not_understood_is_named_with_what_is_allowed(url: str) -> None:
    with pytest.raises(ValueError, match="redis://host:port/db"):
        redis_connection.address(url)
