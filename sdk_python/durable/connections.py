"""Kept connections to the engine for async code: one pool for one event loop, asyncio or Trio.

A connection is either idle in the pool or used by one request; one whose request did not come to its answer (a failure, a
cancellation) is closed, never used again. Uses no proxy. TLS is verified with the system's certificates.
"""

import ssl
import time
from functools import cache
from typing import Final

import anyio
from anyio.abc import ByteStream

from durable.http_exchange import Address, ConnectionWasClosed, Exchange, ExchangeFailed, Reply

CONNECT_SECONDS_MAX: Final = 5.0
# The engine holds a question for a result at most 30 s.
SILENCE_SECONDS_MAX: Final = 45.0
# What stands between may forget a connection that was silent for longer, without telling.
IDLE_SECONDS_MAX: Final = 30.0
IDLE_CONNECTIONS_MAX: Final = 32
_SEND_BYTES: Final = 1 << 20
_RECEIVE_BYTES: Final = 1 << 18


class Connections:
    """All methods run on the loop of the pool."""

    def __init__(self) -> None:
        self._idle: dict[str, list[_Connection]] = {}
        self.is_closed = False

    async def ask(
        self, url: str, method: str, path: str, headers: dict[str, str], body: bytes, *, is_fresh: bool = False
    ) -> Reply:
        """One request to the engine at `url`; ExchangeFailed says why there is no answer. With `is_fresh` a new connection is
        made; without it ConnectionWasClosed says that a kept one was of no use.
        """
        await self._close_old(url)
        connection = None if is_fresh else self._take_idle(url)
        if connection is None:
            connection = await _connect(Address.of(url))
        is_whole = False
        try:
            reply = await connection.ask(method, path, headers, body)
            is_whole = connection.exchange.is_reusable
        finally:
            if is_whole and not self.is_closed:
                connection.used_at = time.monotonic()
                self._idle.setdefault(url, []).append(connection)
            else:
                await connection.close()
        return reply

    async def close(self) -> None:
        """Close what is idle; what is in use is closed when it is not any more."""
        self.is_closed = True
        connections = [connection for idle in self._idle.values() for connection in idle]
        self._idle.clear()
        for connection in connections:
            await connection.close()

    def _take_idle(self, url: str) -> "_Connection | None":
        idle = self._idle.get(url)
        if not idle:
            return None
        # The one that was used last: the others grow old and are closed.
        connection = idle.pop()
        connection.is_kept = True
        return connection

    async def _close_old(self, url: str) -> None:
        idle = self._idle.get(url, [])
        while idle and (len(idle) > IDLE_CONNECTIONS_MAX or time.monotonic() - idle[0].used_at > IDLE_SECONDS_MAX):
            await idle.pop(0).close()


class _Connection:
    """`is_kept`: it has carried a request before, so that the engine may have closed it since."""

    def __init__(self, stream: ByteStream, address: Address) -> None:
        self.exchange = Exchange(address)
        self.used_at = time.monotonic()
        self.is_kept = False
        self._stream = stream

    async def ask(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Reply:
        with anyio.move_on_after(SILENCE_SECONDS_MAX) as silence:
            try:
                await self._send(self.exchange.ask(method, path, headers, body), silence)
                reply = None
                while reply is None:
                    reply = self.exchange.take(await self._receive())
                    silence.deadline = anyio.current_time() + SILENCE_SECONDS_MAX
                return reply
            except ConnectionWasClosed as error:
                if self.is_kept:
                    raise
                raise ExchangeFailed(str(error)) from None
        raise ExchangeFailed(f"nothing came for {SILENCE_SECONDS_MAX:g} s")

    async def close(self) -> None:
        # Does not wait for the other side, so it is right in a cancelled task as well.
        await anyio.aclose_forcefully(self._stream)

    async def _send(self, data: bytes, silence: anyio.CancelScope) -> None:
        try:
            if len(data) <= _SEND_BYTES:
                await self._stream.send(data)
                return
            for start in range(0, len(data), _SEND_BYTES):
                await self._stream.send(data[start : start + _SEND_BYTES])
                silence.deadline = anyio.current_time() + SILENCE_SECONDS_MAX
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
            # The other side may have answered before it closed, with a refusal of the size for example: `_receive` tells.
            pass

    async def _receive(self) -> bytes:
        try:
            return await self._stream.receive(_RECEIVE_BYTES)
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
            return b""


async def _connect(address: Address) -> _Connection:
    try:
        with anyio.move_on_after(CONNECT_SECONDS_MAX):
            # Sets TCP_NODELAY, and tries the addresses of a name side by side.
            if address.is_tls:
                stream: ByteStream = await anyio.connect_tcp(
                    address.host, address.port, ssl_context=tls(), tls_hostname=address.host, tls_standard_compatible=False
                )
            else:
                stream = await anyio.connect_tcp(address.host, address.port)
            return _Connection(stream, address)
    except (OSError, UnicodeError, anyio.BrokenResourceError, anyio.EndOfStream) as error:
        raise ExchangeFailed(str(error) or type(error).__name__) from error
    raise ExchangeFailed(f"no connection within {CONNECT_SECONDS_MAX:g} s")


@cache
def tls() -> ssl.SSLContext:
    # Reading the certificates takes some 20 ms; the context can serve all pools.
    return ssl.create_default_context()
