"""One connection of a machine: its requests for machine routes, one after the other, in the task of the connection.

It begins with each connection, because only the first line of a request says whose it is. The first request for anything else ends it:
what has come so far is returned, and goes with the connection to the server for people. It starts no tasks.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable
from typing import Any, Final, Protocol

import h11
import structlog
import trio

from engine.nursery.http_exchange import HttpExchange, refuse
from engine.nursery.http_wire import HttpWire

log = structlog.get_logger(__name__)

KEEP_ALIVE_SECONDS: Final = 75.0
# From the first byte of a request to the end of its head.
HEAD_SECONDS_MAX: Final = 30.0
HEAD_BYTES_MAX: Final = 64 << 10

_METHOD_BYTES: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ")


class ASGIApp(Protocol):
    """The application, which also says which of its paths are machine routes."""

    def serves_machine(self, path: str) -> bool: ...

    def __call__(self, scope: Any, receive: Any, send: Any, /) -> Awaitable[None]: ...


class Closing:
    """Whether the server closes, and the connections that wait for a request, which nobody would miss then."""

    def __init__(self) -> None:
        self.has_begun = False
        self._idle: set[trio.CancelScope] = set()

    def begin(self) -> None:
        self.has_begun = True
        for scope in self._idle:
            scope.cancel()

    def is_idle(self, scope: trio.CancelScope) -> None:
        self._idle.add(scope)

    def is_busy(self, scope: trio.CancelScope) -> None:
        self._idle.discard(scope)


class MachineConnection:
    """`serve` it, then close the socket or hand it on."""

    def __init__(self, app: ASGIApp, sock: socket.socket, closing: Closing) -> None:
        self._app = app
        self._wire = HttpWire(sock)
        self._closing = closing
        self._client = _address(sock.getpeername())
        self._server = _address(sock.getsockname())
        self._patience = trio.CancelScope()

    async def serve(self) -> bytes | None:
        """Answer requests until the connection is over (None), or until one is not for machines: all bytes since its first."""
        try:
            with self._patience:
                return await self._serve_requests()
        finally:
            self._closing.is_busy(self._patience)
        return None

    async def _serve_requests(self) -> bytes | None:
        data = b""
        while not self._closing.has_begun:
            self._patience.deadline = trio.current_time() + KEEP_ALIVE_SECONDS
            self._closing.is_idle(self._patience)
            if data:
                # The next request is there already; others get their turn before it.
                await trio.lowlevel.checkpoint()
            while (is_ours := self._is_ours(data)) is None:
                if not (data := await self._read_more(data)):
                    return None
            if not is_ours:
                return data
            parser = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES_MAX)
            request = await self._read_head(parser, data)
            if request is None or self._patience.cancel_called:
                return None
            self._closing.is_busy(self._patience)
            self._patience.deadline = float("inf")
            exchange = HttpExchange(self._wire, parser, request, lambda: self._closing.has_begun)
            await self._answer(exchange, request)
            if not exchange.may_follow:
                if exchange.is_answered and not exchange.is_gone and not exchange.is_whole:
                    await self._wire.linger()
                return None
            data = exchange.rest
        return None

    def _is_ours(self, data: bytes) -> bool | None:
        """Whether the first line asks for a machine route; None as long as it can not be told."""
        if not data:
            return None
        end = data.find(b"\n")
        if end < 0:
            return None if data[0] in _METHOD_BYTES and len(data) <= HEAD_BYTES_MAX else False
        words = data[:end].split(b" ")
        return len(words) == 3 and self._app.serves_machine(words[1].partition(b"?")[0].decode("latin-1"))

    async def _read_more(self, data: bytes) -> bytes:
        """`data` and what follows; nothing when nothing follows."""
        if data:
            self._bound_head()
        more = await self._wire.read()
        return data + more if more else b""

    def _bound_head(self) -> None:
        """A head of which something came has little time for the rest, counted from its first byte."""
        self._patience.deadline = min(self._patience.deadline, trio.current_time() + HEAD_SECONDS_MAX)

    async def _read_head(self, parser: h11.Connection, data: bytes) -> h11.Request | None:
        """The request; None when it will not come whole, or is none and was refused."""
        while data:
            parser.receive_data(data)
            try:
                event = parser.next_event()
            except h11.RemoteProtocolError as error:
                self._closing.is_busy(self._patience)
                await refuse(self._wire, error.error_status_hint)
                await self._wire.linger()
                return None
            if isinstance(event, h11.Request):
                return event
            self._bound_head()
            data = await self._wire.read()
        return None

    async def _answer(self, exchange: HttpExchange, request: h11.Request) -> None:
        try:
            await self._app(self._scope(request), exchange.receive, exchange.send)
        except Exception:
            # A fault in one request is not one of the server.
            log.exception("request_failed", target=request.target.decode("latin-1"))
        await exchange.end()

    def _scope(self, request: h11.Request) -> dict[str, Any]:
        raw_path, _, query = request.target.partition(b"?")
        return {
            "type": "http",
            "asgi": {"spec_version": "2.1", "version": "3.0"},
            "http_version": request.http_version.decode(),
            "method": request.method.decode("ascii").upper(),
            "scheme": "http",
            # Only what needs no decoding is a machine route here.
            "path": raw_path.decode("latin-1"),
            "raw_path": raw_path,
            "query_string": query,
            "root_path": "",
            "headers": list(request.headers),
            "client": self._client,
            "server": self._server,
            "state": {},
            "extensions": {},
        }


def _address(name: Any) -> tuple[str, int]:
    """Host and port; of an IPv6 address without flow and scope."""
    return name[0], name[1]
