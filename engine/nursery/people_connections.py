"""What is not for machines: connections that Hypercorn serves, with what they have sent so far put back in front.

Of Hypercorn this takes the parts that its own Trio worker is made of (a test serves through each): its sockets, its protocol for a
connection, and the application's lifespan. The worker itself only takes connections from its own sockets.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import trio
from hypercorn.config import Config
from hypercorn.trio.lifespan import Lifespan
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState, LifespanState
from hypercorn.utils import wrap_app

from engine.nursery.machine_connection import HEAD_BYTES_MAX, KEEP_ALIVE_SECONDS

BACKLOG: Final = 1024


class PeopleConnections:
    """Hypercorn around one application. `serve` connections inside `lifespan`; `close` lets the idle ones go."""

    def __init__(self, app: Callable[[Any, Any, Any], Awaitable[None]], host: str, port: int) -> None:
        self._config = _config(host, port)
        self._app = wrap_app(_with_whole_ends(app), self._config.wsgi_max_body_size, "asgi")
        self._context = WorkerContext(None)
        self._state: LifespanState = {}

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """The application between its start and its end."""
        lifespan = Lifespan(self._app, self._config, self._state)
        async with trio.open_nursery() as nursery:
            await nursery.start(lifespan.handle_lifespan)
            await lifespan.wait_for_startup()
            yield
            await lifespan.wait_for_shutdown()
            nursery.cancel_scope.cancel()

    def listen(self) -> list[socket.socket]:
        """The sockets, bound and listening."""
        sockets: list[socket.socket] = self._config.create_sockets().insecure_sockets
        for sock in sockets:
            sock.listen(BACKLOG)
        return sockets

    async def serve(self, sock: socket.socket, received: bytes) -> None:
        """Serve one connection to its end; `received` has been read from it."""
        stream: Any = _PutBack(trio.SocketStream(trio.socket.from_stdlib_socket(sock)), received)
        await TCPServer(self._app, self._config, self._context, ConnectionState(self._state.copy()), stream)

    async def close(self) -> None:
        """Close the idle connections; the others close after their answer."""
        await self._context.terminated.set()


class _PutBack:
    """A stream that begins with what was read from it before, as far as Hypercorn uses streams."""

    def __init__(self, stream: trio.SocketStream, received: bytes) -> None:
        self._received = received
        self._stream = stream
        self.socket = stream.socket
        self.send_all = stream.send_all
        self.send_eof = stream.send_eof
        self.aclose = stream.aclose

    async def receive_some(self, bytes_max: int) -> bytes:
        if self._received:
            await trio.lowlevel.checkpoint()
            received, self._received = self._received[:bytes_max], self._received[bytes_max:]
            return received
        return await self._stream.receive_some(bytes_max)


def _config(host: str, port: int) -> Config:
    config = Config()
    config.bind = [f"[{host}]:{port}" if ":" in host else f"{host}:{port}"]
    config.keep_alive_timeout = KEEP_ALIVE_SECONDS
    config.accesslog = None
    config.errorlog = None
    # A person's tool may keep one connection for all that it asks.
    config.keep_alive_max_requests = 1_000_000
    config.h11_max_incomplete_size = HEAD_BYTES_MAX
    config.include_server_header = False
    return config


def _with_whole_ends(app: Callable[[Any, Any, Any], Awaitable[None]]) -> Callable[[Any, Any, Any], Awaitable[None]]:
    """The app, its last send shielded from its own cancellation.

    With the last piece of an answer Hypercorn starts the clock that closes an idle connection, in the scope of whoever sends; and it
    tells the app that the exchange is over, upon which Quart-Trio cancels that very scope. The clock would die: no idle connection
    would ever be closed, and each shutdown would wait out its time for those that are left.
    """

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        async def send_whole(message: Any) -> None:
            is_last = message["type"] == "http.response.body" and not message.get("more_body", False)
            # Hypercorn shields the writing itself; what follows takes no time.
            with trio.CancelScope(shield=is_last):
                await send(message)

        await app(scope, receive, send_whole)

    return serve
