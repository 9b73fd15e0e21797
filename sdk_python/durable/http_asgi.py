"""The app as an ASGI application: manifest and invoke over HTTP, at any path, on asyncio and on Trio.

Owns nothing between requests but the memory of ids; invocations belong to `invocations`. It uses the server's lifespan to refuse
a bad configuration and to finish in order, and does without where there is none (mounted in another application).
"""

import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import anyio

from durable.errors import ConfigurationError
from durable.invocations import Servings
from durable.keys import DevKeyMissing
from durable.read_call import METHOD_NOT_ALLOWED, Answer, CallReader, InvokeCall, too_large
from durable.reply_lines import ReplyLines
from durable.wire import BODY_BYTES_MAX

if TYPE_CHECKING:
    from durable.app import App

logger: Final = logging.getLogger("durable")

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]

# Three of these missing is silence to the engine.
KEEP_AWAKE_SECONDS: Final = 10.0


class AsgiApp:
    """`uvicorn shop:asgi`, `hypercorn -k trio shop:asgi`, or mounted: `api.mount("/api/durable", app.asgi())`."""

    def __init__(self, app: "App") -> None:
        self.app = app
        self._reader = CallReader(app)
        self._servings = Servings(app)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1000})
        else:
            raise ValueError(f"A durable app can not serve {scope['type']!r}.")

    async def _http(self, scope: Message, receive: Receive, send: Send) -> None:
        received_at = time.monotonic()
        decision: Answer | InvokeCall | None = METHOD_NOT_ALLOWED
        if scope["method"] == "POST":
            headers = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]]
            body = await _read_body(headers, receive)
            decision = self._reader.read("POST", headers, body, received_at) if isinstance(body, bytes) else body
        if isinstance(decision, Answer):
            await send(_head(decision.status, decision.headers))
            await send({"type": "http.response.body", "body": decision.body})
        elif decision is not None:
            await self._invoke(decision, receive, send)

    async def _invoke(self, call: InvokeCall, receive: Receive, send: Send) -> None:
        """Run the invocations and write their lines. Stays until they have ended, also when the client has left, so
        that a server that stops waits for them; cancelled meanwhile, the invocations go on without it.
        """
        async with self._servings.here().used() as serving:
            wakeup = _Wakeup()
            lines = ReplyLines(len(call.invocations), wakeup.set)
            for invocation in call.invocations:
                serving.start(invocation, lines, call.received_at)
            is_delivered = False
            try:
                is_delivered = await _write_reply(call, lines, wakeup, receive, send)
            finally:
                if not is_delivered:
                    serving.send_ends(lines.close())
            while lines.has_running:
                await wakeup.wait()

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            self.app.settings()
        except DevKeyMissing as error:
            logger.warning("%s The app serves as soon as the key is there.", error)
        except ConfigurationError as error:
            logger.error("%s", error)
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._servings.here().drain()
        await self.app.aclose()
        await send({"type": "lifespan.shutdown.complete"})


class _Wakeup:
    """Wakes its one waiter; set before, the next wait returns at once."""

    def __init__(self) -> None:
        self._event = anyio.Event()

    def set(self) -> None:
        self._event.set()

    async def wait(self) -> None:
        await self._event.wait()
        self._event = anyio.Event()


async def _read_body(headers: list[tuple[str, str]], receive: Receive) -> bytes | Answer | None:
    """The body, the refusal of one that is too large, or None when the client has left in the middle of it."""
    length = next((value for name, value in headers if name == "content-length"), "")
    if length.isdigit() and int(length[:20]) > BODY_BYTES_MAX:
        return too_large()
    parts: list[bytes] = []
    size_bytes = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        size_bytes += len(parts[-1])
        if size_bytes > BODY_BYTES_MAX:
            return too_large()
        if not message.get("more_body", False):
            return b"".join(parts)


async def _write_reply(call: InvokeCall, lines: ReplyLines, wakeup: _Wakeup, receive: Receive, send: Send) -> bool:
    """Write lines as invocations end, and an empty one where nothing happens. False when the client has left."""
    is_gone = False

    async def watch() -> None:
        nonlocal is_gone
        while (await receive())["type"] != "http.disconnect":
            pass
        is_gone = True
        wakeup.set()

    async def write(message: Message) -> bool:
        nonlocal is_gone
        try:
            await send(message)
        except Exception as error:  # servers differ in what they raise once the client has left
            logger.debug("a reply could not be written: %r", error)
            is_gone = True
            return False
        return True

    is_delivered = is_written = False
    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        await write(_head(200, call.headers()))
        await write(_body(call.started_lines(), more=True))
        while not is_gone:
            ended = lines.take()
            is_last = lines.is_complete
            if ended or is_last:
                is_written = await write(_body(call.ended_lines(ended), more=not is_last))
            if is_last:
                # Not `not is_gone`: servers report a disconnect after every complete reply as well.
                is_delivered = is_written
                break
            with anyio.move_on_after(KEEP_AWAKE_SECONDS) as silence:
                await wakeup.wait()
            if silence.cancelled_caught:
                await write(_body(b"\n", more=True))
        group.cancel_scope.cancel()
    return is_delivered


def _head(status: int, headers: list[tuple[str, str]]) -> Message:
    encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    return {"type": "http.response.start", "status": status, "headers": encoded}


def _body(body: bytes, *, more: bool) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}
