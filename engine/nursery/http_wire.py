"""The socket of one connection to the HTTP server, read and written with as few turns of the loop as can be.

Trio's streams give up the turn in each call; this gives it up only to wait. Whoever serves waits for each request, and that is where
others get their turn. Nothing here raises because of the other side: what is lost reads as the end, and what can not be written
returns False.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Final

import trio

READ_BYTES_MAX: Final = 64 << 10
# A client that reads nothing for so long does not want the rest.
UNREAD_SECONDS_MAX: Final = 30.0
# After an answer that came before the end of its request: how much of the rest is still taken, for how long.
LINGER_SECONDS_MAX: Final = 2.0
LINGER_BYTES_MAX: Final = 8 << 20


class HttpWire:
    """`read` and `write` until `close`. It owns the socket, which must not block."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    async def read(self) -> bytes:
        """What has come, waiting for it; `b""` when nothing will come any more."""
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            try:
                return self._socket.recv(READ_BYTES_MAX)
            except BlockingIOError:
                continue
            except OSError:
                return b""

    async def write(self, data: bytes) -> bool:
        """Write it all. False when the other side is gone, or does not read."""
        try:
            sent_bytes = self._socket.send(data)
        except BlockingIOError:
            sent_bytes = 0
        except OSError:
            return False
        return sent_bytes == len(data) or await self._write_slowly(memoryview(data)[sent_bytes:])

    async def _write_slowly(self, rest: memoryview) -> bool:
        while rest:
            with trio.move_on_after(UNREAD_SECONDS_MAX) as patience:
                await trio.lowlevel.wait_writable(self._socket)
            if patience.cancelled_caught:
                return False
            try:
                rest = rest[self._socket.send(rest) :]
            except BlockingIOError:
                continue
            except OSError:
                return False
        return True

    async def linger(self) -> None:
        """Say that nothing more comes, and read on for a while.

        A socket that is closed with something unread in it takes back what was written: the client would lose its answer.
        """
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
        taken_bytes = 0
        with trio.move_on_after(LINGER_SECONDS_MAX):
            while taken_bytes < LINGER_BYTES_MAX and (data := await self.read()):
                taken_bytes += len(data)

    def close(self) -> None:
        """Close at once. Nothing waits."""
        self._socket.close()
