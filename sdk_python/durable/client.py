"""Calls to the engine's API, for async code on asyncio or Trio (`Client`) and for plain code (`SyncClient`).

Owns the connections: one pool per event loop, one per process for plain code, kept alive until `close`. `post` is
one try; `call` tries again while the engine is away or busy. Uses no proxy and follows no redirect: a signed message
goes to DURABLE_URL and nowhere else.
"""

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from typing import Final
from weakref import WeakKeyDictionary

import anyio

from durable.connections import Connections
from durable.errors import EngineUnreachable
from durable.event_loop import current_loop
from durable.http_exchange import ConnectionWasClosed, ExchangeFailed
from durable.keys import Settings
from durable.signed_requests import read_answer, sign_request
from durable.sync_connections import SyncConnections

TRY_AGAIN_SECONDS: Final = 30.0
PAUSE_SECONDS_MIN: Final = 0.2
PAUSE_SECONDS_MAX: Final = 5.0


class Client:
    """For async code. Safe to use from any task of any loop."""

    def __init__(self, read_settings: Callable[[], Settings]) -> None:
        self._read_settings = read_settings
        self._pools: WeakKeyDictionary[object, Connections] = WeakKeyDictionary()

    async def call(self, path: str, body: bytes, message_type: str, *, method: str = "POST") -> bytes:
        """`post`, tried again for about half a minute while the engine is unreachable or busy."""
        pauses = _pauses()
        while True:
            try:
                return await self.post(path, body, message_type, method=method)
            except EngineUnreachable as error:
                pause_seconds = next(pauses, None)
                if pause_seconds is None:
                    raise
                await anyio.sleep(max(pause_seconds, error.retry_after_seconds or 0.0))

    async def post(self, path: str, body: bytes, message_type: str, *, method: str = "POST") -> bytes:
        """Send one signed request with a webhook-id of its own; the verified answer. Raises EngineUnreachable, also
        for 429 and 503, and Refused. `message_type` is the `type` inside of the body, for messages.
        """
        settings = self._read_settings()
        is_fresh = False
        while True:
            request = sign_request(settings, body)
            try:
                reply = await self._pool().ask(settings.url, method, path, request.headers, body, is_fresh=is_fresh)
            except ConnectionWasClosed:
                is_fresh = True
            except ExchangeFailed as error:
                raise _unreachable(settings, message_type, error) from error
            else:
                return read_answer(settings, request, reply.status, reply.headers, reply.body)

    async def close(self) -> None:
        """Close the connections of this loop. It may be used again afterwards."""
        pool = self._pools.pop(current_loop(), None)
        if pool is not None:
            await pool.close()

    def _pool(self) -> Connections:
        loop = current_loop()
        pool = self._pools.get(loop)
        if pool is None:
            self._drop_pools_of_closed_loops()
            pool = self._pools[loop] = Connections()
        return pool

    def _drop_pools_of_closed_loops(self) -> None:
        # asyncio's connections refer to their loop and so keep it and themselves alive: with an asyncio.run() for each
        # send, the process would run out of file descriptors. Trio's do not; they go with their loop.
        for loop in list(self._pools):
            if isinstance(loop, asyncio.AbstractEventLoop) and loop.is_closed():
                del self._pools[loop]


class SyncClient:
    """For plain code. Safe to use from any thread, and after a fork."""

    def __init__(self, read_settings: Callable[[], Settings]) -> None:
        self._read_settings = read_settings
        self._connections = SyncConnections()

    def call(self, path: str, body: bytes, message_type: str, *, method: str = "POST") -> bytes:
        """See `Client.call`."""
        pauses = _pauses()
        while True:
            try:
                return self.post(path, body, message_type, method=method)
            except EngineUnreachable as error:
                pause_seconds = next(pauses, None)
                if pause_seconds is None:
                    raise
                time.sleep(max(pause_seconds, error.retry_after_seconds or 0.0))

    def post(self, path: str, body: bytes, message_type: str, *, method: str = "POST") -> bytes:
        """See `Client.post`."""
        settings = self._read_settings()
        is_fresh = False
        while True:
            request = sign_request(settings, body)
            try:
                reply = self._connections.ask(settings.url, method, path, request.headers, body, is_fresh=is_fresh)
            except ConnectionWasClosed:
                is_fresh = True
            except ExchangeFailed as error:
                raise _unreachable(settings, message_type, error) from error
            else:
                return read_answer(settings, request, reply.status, reply.headers, reply.body)

    def close(self) -> None:
        """Close the connections. It may be used again afterwards."""
        self._connections.close()


def _pauses() -> Iterator[float]:
    """Pauses between tries: growing, with jitter, until TRY_AGAIN_SECONDS have passed."""
    ends_at = time.monotonic() + TRY_AGAIN_SECONDS
    longest_seconds = PAUSE_SECONDS_MIN
    while time.monotonic() < ends_at:
        yield longest_seconds * random.uniform(0.5, 1.0)
        longest_seconds = min(longest_seconds * 2, PAUSE_SECONDS_MAX)


def _unreachable(settings: Settings, message_type: str, error: ExchangeFailed) -> EngineUnreachable:
    return EngineUnreachable(
        f"The engine at {settings.url} could not be reached for {message_type!r}: {error}. "
        "Is it running, and is DURABLE_URL its address?"
    )
