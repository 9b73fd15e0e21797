"""Kept-alive connections to apps, the last used first. httpcore speaks HTTP and TLS; here is only who gets which connection.

Its own pool looks at every connection for every request, and for each counts the idle ones: with 64 calls open that was 60 % of the
engine's time. A stack per origin takes none.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import httpcore
import trio

# Servers close idle connections after five seconds and more (uvicorn: five); we do it before, or a call could meet the closing.
KEEP_SECONDS = 4.0
KEPT_PER_APP_MAX = 256

Origin = tuple[bytes, bytes, int]


class Connections:
    """Opens, keeps and closes them. As a context it closes all at its end."""

    def __init__(self, *, tls: httpcore.AsyncNetworkBackend, plain: httpcore.AsyncNetworkBackend) -> None:
        self._tls = tls
        self._plain = plain
        self._idle: defaultdict[Origin, list[httpcore.AsyncHTTPConnection]] = defaultdict(list)

    async def __aenter__(self) -> Connections:
        return self

    async def __aexit__(self, *exc: object) -> None:
        for idle in self._idle.values():
            for connection in idle:
                await connection.aclose()
        self._idle.clear()

    @asynccontextmanager
    async def post(
        self, url: str, headers: list[tuple[bytes, bytes]], body: bytes, timeouts: dict[str, float]
    ) -> AsyncIterator[httpcore.Response]:
        """POST and give the response while its body is read. The connection is kept when the body was read to its end."""
        request = httpcore.Request("POST", url, headers=headers, content=body, extensions={"timeout": timeouts})
        origin = request.url.origin
        connection = await self._take(origin)
        try:
            response = await connection.handle_async_request(request)
            try:
                yield response
            finally:
                # Closing must come to its end, or the connection would be neither kept nor closed; it only drops a socket.
                with trio.CancelScope(shield=True, deadline=trio.current_time() + 2):
                    await response.aclose()
        finally:
            await self._give_back(origin, connection)

    async def _take(self, origin: httpcore.Origin) -> httpcore.AsyncHTTPConnection:
        idle = self._idle[_key(origin)]
        while idle:
            connection = idle.pop()
            if connection.is_available() and not connection.has_expired():
                return connection
            await connection.aclose()
        backend = self._tls if origin.scheme == b"https" else self._plain
        return httpcore.AsyncHTTPConnection(
            origin=origin, keepalive_expiry=KEEP_SECONDS, network_backend=backend, http1=True, http2=False
        )

    async def _give_back(self, origin: httpcore.Origin, connection: httpcore.AsyncHTTPConnection) -> None:
        idle = self._idle[_key(origin)]
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 2):
            # The longest unused lie at the bottom, where nobody takes them while the ones above suffice.
            while idle and idle[0].has_expired():
                await idle.pop(0).aclose()
            if connection.is_idle() and len(idle) < KEPT_PER_APP_MAX:
                idle.append(connection)
                return
            await connection.aclose()


def host_header(url: str) -> bytes:
    """What belongs into `Host` for this URL."""
    return urlsplit(url).netloc.encode()


def _key(origin: httpcore.Origin) -> Origin:
    return (origin.scheme, origin.host, origin.port)
