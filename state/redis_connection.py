"""One connection to Redis on asyncio: commands are pipelined, replies come in order, a broken connection is opened again."""

import asyncio
import collections
import contextlib
import re
import ssl
import urllib.parse
from collections.abc import Sequence
from typing import Any, NamedTuple

import hiredis

from state import redis_wire, stores

FIRST_BACKOFF_S, LAST_BACKOFF_S = 0.05, 1.0
PASSING = ("LOADING", "BUSY", "MASTERDOWN", "READONLY", "CLUSTERDOWN", "TRYAGAIN", "NOREPLICAS", "MISCONF")


class Address(NamedTuple):
    """Where the server is; exactly one of `path` and `host` is set."""

    path: str
    host: str
    port: int
    tls: bool
    user: str
    password: str
    db: int


class Access(NamedTuple):
    """What opens the server: a password (None: that of the URL), and the authority of its certificate (empty: the system's)."""

    password: str | None = None
    ca_file: str = ""


NO_ACCESS = Access()


def named(url: str) -> str:
    """The URL without user and password, for messages."""
    return re.sub(r"//[^/]*@", "//", url)


def address(url: str) -> Address:
    """Parse redis://[user:password@]host[:port][/db], rediss://... (TLS) or unix://[user:password@]/path[?db=N].

    Raises:
        ValueError: another scheme, or a part that is missing or no number.
    """
    parts = urllib.parse.urlsplit(url)
    query = urllib.parse.parse_qs(parts.query)
    unix = parts.scheme == "unix"
    db = query.get("db", ["0"])[0] if unix else parts.path.strip("/") or "0"
    place = parts.path if unix else parts.hostname
    if parts.scheme not in {"redis", "rediss", "unix"} or not place or not db.isdigit():
        raise ValueError(f"store.url {named(url)} is not understood; use redis://host:port/db, rediss://... or unix:///path?db=0")
    user, password = (urllib.parse.unquote(p or "") for p in (parts.username, parts.password))
    host = "" if unix else parts.hostname or ""
    return Address(place if unix else "", host, parts.port or 6379, parts.scheme == "rediss", user, password, int(db))


class _Waiting:
    """Some replies that one caller waits for; it stays in the queue when the caller gives up, so that late replies match."""

    __slots__ = ("future", "missing", "replies")

    def __init__(self, missing: int) -> None:
        self.future: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self.missing, self.replies = missing, list[Any]()


class Wire(asyncio.Protocol):
    """The protocol: parse replies and hand them out in the order of the commands."""

    def __init__(self) -> None:
        self._reader = hiredis.Reader()
        self._waiting: collections.deque[_Waiting] = collections.deque()
        self._transport: asyncio.WriteTransport | None = None
        self.closed = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        assert isinstance(transport, asyncio.WriteTransport)  # noqa: S101 -- what a stream protocol is always given
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        self._reader.feed(data)
        try:
            while self._waiting and (reply := self._reader.gets()) is not False:
                first = self._waiting[0]
                first.replies.append(reply)
                first.missing -= 1
                if not first.missing:
                    self._waiting.popleft()
                    if not first.future.done():
                        first.future.set_result(first.replies)
        except hiredis.ProtocolError as error:
            self.abort(f"not a Redis server: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        self._transport = None
        self._fail(f"connection lost ({exc})" if exc else "connection closed by the server")
        if not self.closed.done():
            self.closed.set_result(None)

    def _fail(self, why: str) -> None:
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.future.done():
                waiting.future.set_exception(ConnectionError(why))

    def abort(self, why: str) -> None:
        """Close now; whoever waits gets a ConnectionError."""
        self._fail(why)
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    @property
    def open(self) -> bool:
        """Whether commands can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    async def send(self, pieces: Sequence[bytes], replies: int) -> list[Any]:
        """Write whole commands and wait for as many replies; an error reply is an element, not raised."""
        if self._transport is None:
            raise ConnectionError("not connected")
        waiting = _Waiting(replies)
        self._waiting.append(waiting)
        self._transport.write(b"".join(pieces))
        return await waiting.future


class Connection:
    """Opens on first use and again after a loss.

    A call that finds the server away tries again for `patience_s` (0: once), backing off from 0.05 to 1 s; while the backoff
    runs, impatient calls fail at once with the last cause.
    """

    def __init__(self, url: str, access: Access, timeout_s: float, patience_s: float) -> None:
        self.url, self._address, self._timeout_s, self._patience_s = named(url), address(url), timeout_s, patience_s
        self._password = access.password if access.password is not None else self._address.password
        self._tls = ssl.create_default_context(cafile=access.ca_file or None) if self._address.tls else None
        self._wire: Wire | None = None
        self._lock = asyncio.Lock()
        self._backoff_s, self._not_before, self._cause = 0.0, 0.0, ""

    async def ask(self, pieces: Sequence[bytes], replies: int = 1, *, repeat: bool = True) -> list[Any]:
        """Send and wait. With `repeat`, commands that may safely run twice are sent again while patience lasts.

        Raises:
            StoreUnavailable: no answer in time, or the server says that it cannot answer now.
            StoreRefused: an error that trying again does not mend; NOSCRIPT is returned, not raised.
        """
        clock = asyncio.get_running_loop().time
        until = clock() + self._patience_s
        while True:
            try:
                return await self._once(pieces, replies)
            except stores.StoreUnavailable:
                if not repeat or clock() >= until:
                    raise
                await asyncio.sleep(max(self._not_before - clock(), FIRST_BACKOFF_S))

    async def _once(self, pieces: Sequence[bytes], replies: int) -> list[Any]:
        wire = await self._opened()
        try:
            async with asyncio.timeout(self._timeout_s):
                answers = await wire.send(pieces, replies)
        except TimeoutError as error:
            wire.abort("an earlier call got no reply in time")
            raise stores.StoreUnavailable(self.url, f"no reply in {self._timeout_s:g} s") from error
        except OSError as error:
            raise stores.StoreUnavailable(self.url, str(error)) from error
        self._check(answers)
        return answers

    def _check(self, answers: Sequence[Any]) -> None:
        for answer in answers:
            if isinstance(answer, hiredis.ReplyError):
                text = str(answer)
                if text.startswith(PASSING):
                    raise stores.StoreUnavailable(self.url, f"the server answered {text!r}")
                if not text.startswith("NOSCRIPT"):
                    raise stores.StoreRefused(f"store {self.url} answered {text!r}")

    async def _opened(self) -> Wire:
        if self._wire is not None and self._wire.open:
            return self._wire
        async with self._lock:
            if self._wire is not None and self._wire.open:
                return self._wire
            clock = asyncio.get_running_loop().time
            if clock() < self._not_before:
                raise stores.StoreUnavailable(self.url, self._cause)
            try:
                async with asyncio.timeout(self._timeout_s):
                    self._wire = await self._connected()
            except (OSError, TimeoutError) as error:
                self._cause = str(error) or f"no connection in {self._timeout_s:g} s"
                self._backoff_s = min(max(FIRST_BACKOFF_S, 2 * self._backoff_s), LAST_BACKOFF_S)
                self._not_before = clock() + self._backoff_s
                raise stores.StoreUnavailable(self.url, self._cause) from error
            self._backoff_s = 0.0
            return self._wire

    async def _connected(self) -> Wire:
        loop, place = asyncio.get_running_loop(), self._address
        if place.path:
            _, wire = await loop.create_unix_connection(Wire, place.path)
        else:
            _, wire = await loop.create_connection(Wire, place.host, place.port, ssl=self._tls)
        greeting = []
        if self._password:
            greeting.append(redis_wire.command(b"AUTH", *([place.user.encode()] if place.user else []), self._password.encode()))
        if place.db:
            greeting.append(redis_wire.command(b"SELECT", b"%d" % place.db))
        greeting.append(redis_wire.command(b"PING"))
        try:
            self._check(await wire.send(greeting, len(greeting)))
        except BaseException:
            wire.abort("the greeting failed")
            with contextlib.suppress(asyncio.CancelledError):
                await wire.closed
            raise
        return wire

    async def close(self) -> None:
        """Close the connection; calls that wait fail."""
        if self._wire is not None:
            self._wire.abort("closed by this process")
            await self._wire.closed
            self._wire = None
