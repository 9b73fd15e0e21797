"""The app as a WSGI application, for gunicorn, Flask, Django and other threaded servers.

Invocations run on an asyncio loop in a background thread (sync handlers in threads of their own); the server's
thread only writes the lines of its reply. Every call holds a thread of the server for as long as it lasts.
"""

import queue
import time
from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from durable.background_loop import BackgroundLoop
from durable.invocations import Servings
from durable.read_call import METHOD_NOT_ALLOWED, Answer, CallReader, Header, InvokeCall, too_large
from durable.reply_lines import ReplyLines
from durable.wire import BODY_BYTES_MAX, Ended

if TYPE_CHECKING:
    from durable.app import App

Environ: TypeAlias = dict[str, Any]
StartResponse: TypeAlias = Callable[[str, list[Header]], Any]

KEEP_AWAKE_SECONDS: Final = 10.0
_READ_BYTES: Final = 1 << 20


class WsgiApp:
    """`gunicorn --threads 16 shop:wsgi`, or beside Flask:

    flask_app.wsgi_app = DispatcherMiddleware(flask_app.wsgi_app, {"/api/durable": app.wsgi()})
    """

    def __init__(self, app: "App") -> None:
        self.app = app
        self._reader = CallReader(app)
        self._servings = Servings(app)
        self._loop = BackgroundLoop(self._drain)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        received_at = time.monotonic()
        decision: Answer | InvokeCall = METHOD_NOT_ALLOWED
        if environ["REQUEST_METHOD"] == "POST":
            body = _read_body(environ)
            decision = self._reader.read("POST", _headers(environ), body, received_at) if isinstance(body, bytes) else body
        if isinstance(decision, InvokeCall):
            reply = _Reply(self, decision)
            start_response("200 OK", decision.headers())
            return reply
        start_response(f"{decision.status} {HTTPStatus(decision.status).phrase}", decision.headers)
        return [decision.body]

    def close(self) -> None:
        """Let what runs come to its end, within limits, and stop the thread. Done at the interpreter's end by itself."""
        self._loop.stop()

    def start(self, call: InvokeCall, lines: ReplyLines) -> None:
        """Start the invocations of a call."""
        self._loop.run(self._start(call, lines))

    def send_ends(self, ends: list[Ended]) -> None:
        """Say these ends by checkpoint."""
        if ends:
            self._loop.run(self._send_ends(ends))

    async def _start(self, call: InvokeCall, lines: ReplyLines) -> None:
        async with self._servings.here().used() as serving:
            for invocation in call.invocations:
                serving.start(invocation, lines, call.received_at)

    async def _send_ends(self, ends: list[Ended]) -> None:
        async with self._servings.here().used() as serving:
            serving.send_ends(ends)

    async def _drain(self) -> None:
        await self._servings.here().drain()
        await self.app.client.close()


class _Reply:
    """The streamed reply to one call. The server iterates it and calls `close` at its end, or when the client left."""

    def __init__(self, wsgi: WsgiApp, call: InvokeCall) -> None:
        self._wsgi = wsgi
        self._call = call
        self._news: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._lines = ReplyLines(len(call.invocations), lambda: self._news.put(None))
        self._is_delivered = False
        wsgi.start(call, self._lines)

    def __iter__(self) -> Iterator[bytes]:
        yield self._call.started_lines()
        while True:
            ended = self._lines.take()
            is_last = self._lines.is_complete
            if ended:
                yield self._call.ended_lines(ended)
            if is_last:
                # Reached only when the server has asked for more, so it has written all that was before.
                self._is_delivered = True
                return
            try:
                self._news.get(timeout=KEEP_AWAKE_SECONDS)
            except queue.Empty:
                yield b"\n"

    def close(self) -> None:
        if not self._is_delivered:
            self._is_delivered = True
            self._wsgi.send_ends(self._lines.close())


def _headers(environ: Environ) -> Iterator[Header]:
    for name, value in environ.items():
        if name.startswith("HTTP_"):
            yield name[5:].replace("_", "-").lower(), value


def _read_body(environ: Environ) -> bytes | Answer:
    length = environ.get("CONTENT_LENGTH") or ""
    # Without a length the stream may not be read, unless the server says that it ends by itself.
    left_bytes = int(length) if length.isdigit() and len(length) < 20 else -1
    if left_bytes > BODY_BYTES_MAX:
        return too_large()
    if left_bytes < 0 and not environ.get("wsgi.input_terminated"):
        return b""
    if left_bytes < 0:
        left_bytes = BODY_BYTES_MAX + 1
    parts: list[bytes] = []
    while left_bytes > 0:
        part = environ["wsgi.input"].read(min(left_bytes, _READ_BYTES))
        if not part:
            break
        parts.append(part)
        left_bytes -= len(part)
    body = b"".join(parts)
    return body if len(body) <= BODY_BYTES_MAX else too_large()
