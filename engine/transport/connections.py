"""Kept-alive connections to apps, the last used first: who gets which, and how a new one comes about.

A stack per origin takes no time however many connections there are. A connection is kept when its reply was read to its end.
"""

from __future__ import annotations

import ssl
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import certifi
import trio

from engine.transport.app_url import AppUrl, Origin
from engine.transport.guard import AddressGuard, NotConnected
from engine.transport.http_connection import HttpConnection

# Servers close idle connections after five seconds and more (uvicorn: five); we do it before, or a call could meet the closing.
KEEP_SECONDS = 4.0
KEPT_PER_APP_MAX = 256
TLS_SECONDS_MAX = 5.0


class Connections:
    """Opens, keeps and closes them. As a context it closes all idle ones at its end."""

    def __init__(self, *, tls: AddressGuard, plain: AddressGuard, tls_context: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._plain = plain
        self._tls_context = tls_context
        self._idle: defaultdict[Origin, list[HttpConnection]] = defaultdict(list)
        self._swept_at = float("-inf")

    async def __aenter__(self) -> Connections:
        return self

    async def __aexit__(self, *exc: object) -> None:
        for idle in self._idle.values():
            for connection in idle:
                connection.close()
        self._idle.clear()

    @property
    def idle_count(self) -> int:
        return sum(len(idle) for idle in self._idle.values())

    @asynccontextmanager
    async def use(self, url: AppUrl) -> AsyncIterator[HttpConnection]:
        """A connection to the app; kept afterwards when its reply was read to its end, else closed."""
        connection = self._take(url.origin) or await self._open(url.origin)
        try:
            yield connection
        finally:
            self._give_back(url.origin, connection)

    def _take(self, origin: Origin) -> HttpConnection | None:
        idle = self._idle[origin]
        while idle:
            connection = idle.pop()
            if trio.current_time() - connection.idle_since < KEEP_SECONDS and connection.is_quiet():
                return connection
            connection.close()
        return None

    async def _open(self, origin: Origin) -> HttpConnection:
        if not origin.is_tls:
            return HttpConnection(await self._plain.connect(origin.host, origin.port))
        plain = await self._tls.connect(origin.host, origin.port)
        stream = trio.SSLStream(plain, self._context(), server_hostname=origin.host, https_compatible=True)
        is_done = False
        try:
            with trio.fail_after(TLS_SECONDS_MAX):
                await stream.do_handshake()
            is_done = True
        except trio.TooSlowError:
            raise NotConnected(f"TLS was not agreed on within {TLS_SECONDS_MAX:g} s") from None
        except (trio.BrokenResourceError, ssl.SSLError) as error:
            raise NotConnected(f"TLS failed: {error.__cause__ or error}") from error
        finally:
            if not is_done:
                plain.socket.close()
        return HttpConnection(stream)

    def _context(self) -> ssl.SSLContext:
        """Made at the first need: reading the certificates takes tens of milliseconds."""
        if self._tls_context is None:
            self._tls_context = ssl.create_default_context()
            self._tls_context.load_verify_locations(certifi.where())
        return self._tls_context

    def _give_back(self, origin: Origin, connection: HttpConnection) -> None:
        now = trio.current_time()
        if now - self._swept_at >= KEEP_SECONDS:
            self._sweep(now)
        if connection.may_be_kept and len(self._idle[origin]) < KEPT_PER_APP_MAX:
            connection.idle_since = now
            self._idle[origin].append(connection)
            return
        connection.close()

    def _sweep(self, now: float) -> None:
        """Close what nobody took in time, also of apps that are called no more."""
        self._swept_at = now
        for origin, idle in list(self._idle.items()):
            # The longest unused lie at the bottom, where nobody takes them while the ones above suffice.
            while idle and now - idle[0].idle_since >= KEEP_SECONDS:
                idle.pop(0).close()
            if not idle:
                del self._idle[origin]
