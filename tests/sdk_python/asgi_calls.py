"""Calls an ASGI app directly, message by message, for what no polite HTTP client would do."""

from typing import Any

import anyio

Message = dict[str, Any]


async def call(
    asgi: Any,
    *,
    method: str = "POST",
    headers: dict[str, str] | None = None,
    parts: list[bytes] | None = None,
    leaves: bool = False,
) -> list[Message]:
    """What the app sends for a request whose body comes in `parts`; `leaves`: the client goes away after them."""
    sent: list[Message] = []
    pieces = [b""] if parts is None else parts
    coming: list[Message] = [
        {"type": "http.request", "body": part, "more_body": leaves or index < len(pieces) - 1}
        for index, part in enumerate(pieces)
    ]
    if leaves:
        coming.append({"type": "http.disconnect"})

    async def receive() -> Message:
        if coming:
            return coming.pop(0)
        await anyio.sleep_forever()
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    encoded = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    await asgi({"type": "http", "method": method, "path": "/any/where", "headers": encoded}, receive, send)
    return sent


def status_of(sent: list[Message]) -> int:
    return int(sent[0]["status"])


def headers_of(sent: list[Message]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in sent[0]["headers"]}


def body_of(sent: list[Message]) -> bytes:
    return b"".join(message["body"] for message in sent[1:])
