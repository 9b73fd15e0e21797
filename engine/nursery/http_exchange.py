"""One request and its answer, as ASGI has them, on a connection for machines.

h11 reads the request, whatever a stranger may have made of it. The answer is our own, and is written here: head and body leave
together. An exchange knows at its end whether another request may follow on its connection, and which bytes of it have come already.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, Final

import h11
import trio

from engine.nursery.http_wire import HttpWire

# What a client may send ahead while its request is answered. After that it is no longer noticed when it hangs up.
AHEAD_BYTES_MAX: Final = 64 << 10

_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_DISCONNECT: Final = {"type": "http.disconnect"}
_STATUS_LINES: Final = {status.value: f"HTTP/1.1 {status.value} {status.phrase}".encode() for status in HTTPStatus}


class HttpExchange:
    """`receive` and `send` are the application's; `refuse` is for requests that it does not answer."""

    def __init__(self, wire: HttpWire, parser: h11.Connection, request: h11.Request, is_closing: Callable[[], bool]) -> None:
        self._wire = wire
        self._parser = parser
        self._is_closing = is_closing
        self._is_head = request.method == b"HEAD"
        self._speaks_chunks = request.http_version == b"1.1"
        # HTTP/1.0 keeps connections open only on request, and who speaks it is no app of ours.
        self._stays_open = self._speaks_chunks and not _has_close(request)
        self._awaits_continue = parser.they_are_waiting_for_100_continue
        self._is_read = False
        self._garbled_status: int | None = None
        self._ahead = b""
        self._start: dict[str, Any] | None = None
        self._is_chunked = False
        self._left_bytes: int | None = None
        self.is_begun = False
        self.is_answered = False
        self.is_gone = False

    @property
    def may_follow(self) -> bool:
        """Whether another request may follow on this connection."""
        return self.is_answered and self._is_read and self._stays_open and not self.is_gone

    @property
    def is_whole(self) -> bool:
        """Whether the request has come to its end, and nothing after it."""
        return self._is_read and not self.rest

    @property
    def rest(self) -> bytes:
        """What came after the request."""
        return self._parser.trailing_data[0] + self._ahead

    async def receive(self) -> dict[str, Any]:
        """The next part of the body. After its end: that the client is gone, when it is."""
        if self.is_answered or self.is_gone or self._garbled_status is not None:
            return _DISCONNECT
        if self._is_read:
            return await self._wait_gone()
        while True:
            body = self._next_part()
            if body is None:
                return _DISCONNECT
            if body or self._is_read:
                return {"type": "http.request", "body": body, "more_body": not self._is_read}
            if self._awaits_continue:
                self._awaits_continue = False
                # Once the answer has begun it would come into its middle.
                self.is_gone = not self.is_begun and not await self._wire.write(_CONTINUE)
            data = b"" if self.is_gone else await self._wire.read()
            if not data:
                self.is_gone = True
                return _DISCONNECT
            self._parser.receive_data(data)

    def _next_part(self) -> bytes | None:
        """All of the body that has come and was not taken yet. None when it is no good HTTP."""
        parts = []
        try:
            while True:
                event = self._parser.next_event()
                if isinstance(event, h11.Data):
                    parts.append(bytes(event.data))
                    continue
                self._is_read = isinstance(event, h11.EndOfMessage)
                break
        except h11.RemoteProtocolError as error:
            self._garbled_status = error.error_status_hint
            return None
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _wait_gone(self) -> dict[str, Any]:
        while len(self._ahead) < AHEAD_BYTES_MAX:
            data = await self._wire.read()
            if not data:
                self.is_gone = True
                return _DISCONNECT
            self._ahead += data
        await trio.sleep_forever()

    async def send(self, message: dict[str, Any]) -> None:
        """The start of the answer, or the next part of its body."""
        kind = message["type"]
        if kind == "http.response.start" and self._start is None:
            self._start = message
        elif kind == "http.response.body" and self._start is not None and not self.is_answered:
            await self._send_body(self._start, message.get("body", b""), not message.get("more_body", False))
        else:
            raise RuntimeError(f"{kind} is out of turn in an answer")

    async def _send_body(self, start: dict[str, Any], body: bytes, is_last: bool) -> None:
        head = b""
        if not self.is_begun:
            head = self._head(start["status"], start["headers"], len(body) if is_last else None)
        if self._has_no_body(start["status"]):
            body = b""
        elif self._is_chunked:
            body = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + (b"0\r\n\r\n" if is_last else b"")
        elif self._left_bytes is not None:
            self._left_bytes -= len(body)
            if self._left_bytes < 0 or (is_last and self._left_bytes):
                self._stays_open = False
                raise RuntimeError("The answer is not as long as its content-length says")
        self.is_begun, self.is_answered = True, is_last
        if (head or body) and not self.is_gone and not await self._wire.write(head + body):
            self.is_gone = True

    def _head(self, status: int, headers: list[tuple[bytes, bytes]], body_bytes: int | None) -> bytes:
        if body_bytes is not None and not self._is_read and self._garbled_status is None:
            # The answer does not wait for the rest of the request. If that has come it is out of the way.
            self._next_part()
        lines = [_STATUS_LINES.get(status) or b"HTTP/1.1 %d " % status]
        for name, value in headers:
            match name.lower():
                case b"content-length":
                    self._left_bytes = int(value)
                case b"connection":
                    self._stays_open = self._stays_open and value.lower() != b"close"
                    continue
                case b"transfer-encoding":
                    continue
            lines.append(b"%b: %b" % (name, value))
        if self._left_bytes is None and not self._has_no_body(status):
            if body_bytes is not None:
                self._left_bytes = body_bytes
                lines.append(b"content-length: %d" % body_bytes)
            elif self._speaks_chunks:
                self._is_chunked = True
                lines.append(b"transfer-encoding: chunked")
            else:
                self._stays_open = False
        lines.append(_date_line())
        if self._is_closing() or not self._is_read:
            self._stays_open = False
        if not self._stays_open:
            lines.append(b"connection: close")
        head = b"\r\n".join(lines)
        if head.count(b"\n") != len(lines) - 1 or head.count(b"\r") != len(lines) - 1:
            raise RuntimeError("A header of the answer has more than one line")
        return head + b"\r\n\r\n"

    def _has_no_body(self, status: int) -> bool:
        return self._is_head or status in (204, 304)

    async def end(self) -> None:
        """Make up for an answer that did not come whole: with 500, or as what the request was refused for."""
        if self.is_answered or self.is_gone:
            return
        self._stays_open = False
        if not self.is_begun:
            self.is_answered = True
            await refuse(self._wire, self._garbled_status or 500)


async def refuse(wire: HttpWire, status: int) -> None:
    """An answer without words, before the connection is closed."""
    line = _STATUS_LINES.get(status) or b"HTTP/1.1 %d " % status
    await wire.write(b"\r\n".join((line, b"content-length: 0", _date_line(), b"connection: close", b"", b"")))


def _has_close(request: h11.Request) -> bool:
    return any(
        name == b"connection" and b"close" in (word.strip() for word in value.lower().split(b","))
        for name, value in request.headers
    )


_date: tuple[int, bytes] = (0, b"")


def _date_line() -> bytes:
    """Written once a second."""
    global _date
    now = int(time.time())
    if _date[0] != now:
        _date = (now, b"date: " + formatdate(now, usegmt=True).encode())
    return _date[1]
