"""An echo behind the HTTP server, and clients that speak to it in raw bytes: what the tests of the server stand on."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio

from engine.nursery import http_server, machine_connection
from engine.nursery.http_server import serve_http

CLOSE = "connection: close"
Act = Callable[[Any, Any, Any], Awaitable[None]]


@dataclass
class EchoApp:
    """Answers with method, path, query and body. A path in `acts` does as it says. Paths under /m are machine routes."""

    acts: dict[str, Act] = field(default_factory=dict)
    scopes: list[Any] = field(default_factory=list)
    is_lean: list[bool] = field(default_factory=list)

    def serves_machine(self, path: str) -> bool:
        return path.startswith("/m/")

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise RuntimeError("only http")
        self.scopes.append(scope)
        self.is_lean.append(type(getattr(receive, "__self__", None)).__name__ == "HttpExchange")
        if act := self.acts.get(scope["path"]):
            await act(scope, receive, send)
            return
        body = await read_body(receive)
        words = [scope["method"].encode(), scope["raw_path"], scope["query_string"], body]
        await answer(send, b"|".join(words))


async def read_body(receive: Any) -> bytes:
    body = b""
    while True:
        message = await receive()
        assert message["type"] == "http.request", message
        body += message["body"]
        if not message["more_body"]:
            return body


async def answer(send: Any, body: bytes, *headers: tuple[bytes, bytes], status: int = 200) -> None:
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": status, "headers": [length, *headers]})
    await send({"type": "http.response.body", "body": body, "more_body": False})


@dataclass
class Stand:
    app: EchoApp
    port: int
    closing: trio.Event
    nursery: trio.Nursery
    is_over: trio.Event

    async def open(self) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", self.port)

    async def ask(self, *parts: bytes) -> bytes:
        """Send, and read until the server closes."""
        stream = await self.open()
        async with stream:
            with suppress(trio.BrokenResourceError):
                for part in parts:
                    await stream.send_all(part)
            return await read_to_end(stream)


@asynccontextmanager
async def a_server(**acts: Act) -> AsyncIterator[Stand]:
    app, closing, is_over = EchoApp({f"/m/{name}": act for name, act in acts.items()}), trio.Event(), trio.Event()

    async def serve(task_status: trio.TaskStatus[list[str]]) -> None:
        await serve_http(app, "127.0.0.1", 0, closing, task_status=task_status)
        is_over.set()

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            [bind] = await nursery.start(serve)
            yield Stand(app, int(bind.rsplit(":", 1)[1]), closing, nursery, is_over)
            nursery.cancel_scope.cancel()


async def read_to_end(stream: trio.SocketStream) -> bytes:
    answers = b""
    with trio.fail_after(20), suppress(trio.BrokenResourceError):
        while part := await stream.receive_some(65536):
            answers += part
    return answers


async def read_answer(stream: trio.SocketStream) -> bytes:
    """One answer with a content-length."""
    data = b""
    with trio.fail_after(20):
        while True:
            head, separator, body = data.partition(b"\r\n\r\n")
            if separator:
                length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
                if len(body) >= length:
                    return data
            part = await stream.receive_some(65536)
            assert part, data
            data += part


def post(path: str, body: bytes = b"", *lines: str, method: str = "POST", version: str = "1.1") -> bytes:
    head = [f"{method} {path} HTTP/{version}", "host: x", f"content-length: {len(body)}", *lines, "", ""]
    return "\r\n".join(head).encode() + body


def hang_up(stream: trio.SocketStream, is_rude: bool = True) -> None:
    if is_rude:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


@contextmanager
def logged() -> Iterator[list[dict[str, Any]]]:
    """The faults that the server logs in a block."""
    lines: list[dict[str, Any]] = []

    class Log:
        def exception(self, event: str, **words: Any) -> None:
            lines.append({"event": event, **words})

    with pytest.MonkeyPatch.context() as patch:
        for module in (http_server, machine_connection):
            patch.setattr(module, "log", Log())
        yield lines
