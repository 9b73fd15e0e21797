"""One connection to an app: a request goes out, its reply comes in, and the next request may follow.

Nothing that the app sends raises anything but `ConnectionLost`; closing never waits, so a scope that is cancelled at any point closes.
"""

from __future__ import annotations

import select
from typing import Final

import trio

from engine.transport.http_reply import ReplyGarbled, ReplyHead, ReplyReader

READ_BYTES_MAX: Final = 64 << 10
# Smaller bodies leave together with their headers, in one packet where they fit.
JOINED_BYTES_MAX: Final = 64 << 10


class ConnectionLost(Exception):
    """The reply did not come whole: closed, silent for too long, or not HTTP. The app may have the request."""

    code = "connection_lost"


class HttpConnection:
    """`ask`, then `read` to the end of the reply; `close` when it was not read to its end."""

    def __init__(self, stream: trio.SocketStream | trio.SSLStream[trio.SocketStream]) -> None:
        self._stream = stream
        self._socket = stream.socket if isinstance(stream, trio.SocketStream) else stream.transport_stream.socket
        self._reader = ReplyReader()
        self._unread = b""
        self._was_sent_whole = False
        self.idle_since = 0.0

    @property
    def may_be_kept(self) -> bool:
        """Whether another request may follow."""
        return self._was_sent_whole and self._reader.may_be_kept and not self._unread

    def is_quiet(self) -> bool:
        """Whether an idle connection is still open, with nothing unasked in it."""
        poll = select.poll()
        poll.register(self._socket.fileno(), select.POLLIN)
        return not poll.poll(0)

    async def ask(self, head: bytes, body: bytes, silence_seconds_max: float) -> ReplyHead:
        """Send a request; the head of its reply."""
        self._reader = ReplyReader()
        self._was_sent_whole = False
        try:
            with trio.fail_after(silence_seconds_max):
                if len(body) <= JOINED_BYTES_MAX:
                    await self._stream.send_all(head + body)
                else:
                    await self._stream.send_all(head)
                    await self._stream.send_all(body)
            self._was_sent_whole = True
        except trio.TooSlowError:
            raise ConnectionLost(f"it did not read the call within {silence_seconds_max:g} s") from None
        except trio.BrokenResourceError:
            # An app that refuses a call may close before it has read it whole; its answer is there nevertheless.
            pass
        while self._reader.head is None:
            self._unread = await self._receive(silence_seconds_max)
        return self._reader.head

    async def read(self, silence_seconds_max: float) -> bytes:
        """The next part of the reply's body; `b""` at its end."""
        if self._unread:
            body, self._unread = self._unread, b""
            return body
        while not self._reader.is_over:
            if body := await self._receive(silence_seconds_max):
                return body
        return b""

    async def _receive(self, silence_seconds_max: float) -> bytes:
        try:
            with trio.fail_after(silence_seconds_max):
                data = bytes(await self._stream.receive_some(READ_BYTES_MAX))
            return self._reader.feed(data)
        except trio.TooSlowError:
            raise ConnectionLost(f"nothing came for {silence_seconds_max:g} s") from None
        except trio.BrokenResourceError as error:
            raise ConnectionLost(str(error.__cause__ or error) or "the connection broke") from None
        except ReplyGarbled as garbled:
            raise ConnectionLost(str(garbled)) from None

    def close(self) -> None:
        """Close at once, without a goodbye."""
        self._socket.close()
