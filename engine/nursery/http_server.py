"""The HTTP server: machine routes on lean connections, everything else by Hypercorn, on one port; stopped gracefully by an event.

Requests of machines carry every run, and Hypercorn costs several times what an answer does. Each connection is one task. It begins as a
`MachineConnection`; the first request that is not for a machine route hands it to Hypercorn for the rest of its life.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

import structlog
import trio
from hypercorn.utils import repr_socket_addr

from engine.nursery.machine_connection import ASGIApp, Closing, MachineConnection
from engine.nursery.people_connections import PeopleConnections
from engine.nursery.task_tree import name_nursery

__all__ = ["ASGIApp", "serve_http"]

log = structlog.get_logger(__name__)

# For the requests that are under way when the server closes.
GRACEFUL_SECONDS_MAX: Final = 5.0


async def serve_http(
    app: ASGIApp,
    host: str,
    port: int,
    closing: trio.Event,
    *,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until `closing` is set and the requests under way have been answered; reports the bound addresses."""
    people = PeopleConnections(app, host, port)
    server = HttpServer(app, people)
    async with people.lifespan():
        async with trio.open_nursery() as http:
            name_nursery(http, "http")
            listening = people.listen()
            async with trio.open_nursery() as accepting:
                for sock in listening:
                    accepting.start_soon(server.accept, sock, http)
                task_status.started([f"http://{repr_socket_addr(sock.family, sock.getsockname())}" for sock in listening])
                await closing.wait()
                accepting.cancel_scope.cancel()
            await server.close()
            http.cancel_scope.deadline = trio.current_time() + GRACEFUL_SECONDS_MAX


class HttpServer:
    """What all connections share."""

    def __init__(self, app: ASGIApp, people: PeopleConnections) -> None:
        self._app = app
        self._people = people
        self._closing = Closing()

    async def accept(self, listening: socket.socket, http: trio.Nursery) -> None:
        """Give each connection that comes to a task of its own in `http`."""
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
        await trio.serve_listeners(self.serve_connection, [listener], handler_nursery=cast(trio.Nursery, _NamedStarts(http)))

    async def close(self) -> None:
        """End the connections that are idle now; the others end with their answer."""
        self._closing.begin()
        await self._people.close()

    async def serve_connection(self, stream: trio.SocketStream) -> None:
        # Trio's stream has set the options of the socket; the socket itself takes fewer turns of the loop.
        sock = socket.socket(fileno=stream.socket.detach())
        try:
            sock.setblocking(False)
            await self._serve(sock)
        except* Exception:
            # One connection must not take the others with it.
            log.exception("connection_failed")
        finally:
            sock.close()

    async def _serve(self, sock: socket.socket) -> None:
        try:
            machine = MachineConnection(self._app, sock, self._closing)
        except OSError:
            return  # It was gone before it began, and has no address any more.
        unserved = await machine.serve()
        if unserved is not None:
            await self._people.serve(sock, unserved)


class _NamedStarts:
    """The nursery of the connections, as far as Trio's accepting uses it, which would call all their tasks after itself."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    def start_soon(self, serve: Callable[..., Awaitable[Any]], *args: Any) -> None:
        self._nursery.start_soon(serve, *args, name="connection")
