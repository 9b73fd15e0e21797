"""A small app on the bare protocol that answers wrongly when told: the event's data says how, and for how many calls of the run.

After that it answers as it should, so that a run that survived completes. What it answers to the question for its manifest stands in
the file `manifest_reply` beside the witness (none: a good one).
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from msgspec import Raw, json

from protocol import signing
from protocol.calls import Ended, Invocation, Invoke, Started
from protocol.manifest import Capabilities, FunctionConfig, Manifest, Trigger, Workspace
from protocol.messages import decode_call, encode
from protocol.ops import Backoff, Complete
from tests.system import witness_log

LINES_TYPE = "application/vnd.durable.lines"
CHUNK = b"x" * 65_536
ENDLESS_CHUNKS = 1_200  # 75 MiB: beyond the limit of a body, and not beyond a test's patience
STRANGERS_KEY = signing.Key.parse(signing.new_key())

calls: Counter[str] = Counter()


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        raise ValueError("only HTTP")
    body = b""
    while (message := await receive())["type"] == "http.request":
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    if not body:
        return await answer(send, 405, {}, b"")
    headers = {name.decode(): value.decode() for name, value in scope["headers"]}
    request_id = headers["webhook-id"]
    call = decode_call(body)
    if isinstance(call, Invoke):
        [invocation] = call.invocations
        await answer_invocation(send, request_id, invocation)
    else:
        await answer_manifest(send, request_id)


async def answer_manifest(send: Any, request_id: str) -> None:
    told = beside_witness("manifest_reply")
    if not told.exists():
        return await answer_signed(send, request_id, encode(MANIFEST))
    with open(beside_witness("manifest_asked"), "a") as asked:
        asked.write("asked\n")
    await answer_wrongly(send, request_id, None, told.read_text())


async def answer_invocation(send: Any, request_id: str, invocation: Invocation) -> None:
    asked = json.decode(bytes(invocation.event.data))
    calls[invocation.run_id] += 1
    witness_log.write({"what": "start", "run_id": invocation.run_id, "step_id": "call", "attempt": invocation.attempt,
                       "generation": invocation.generation, "pid": os.getpid(), "function": "raw", "key": "", "is_ok": True})  # fmt: skip
    if calls[invocation.run_id] <= asked["times"]:
        return await answer_wrongly(send, request_id, invocation, asked["reply"])
    started = Started(invocation.run_id, invocation.generation)
    await answer(send, 200, lines_headers(request_id), line(request_id, encode(started)) + good_end(request_id, invocation))


async def answer_wrongly(send: Any, request_id: str, invocation: Invocation | None, reply: str) -> None:
    """`reply` is a name of REPLIES, or `429 <retry-after>`."""
    if reply.startswith("429 "):
        return await answer(send, 429, {"retry-after": reply[4:]}, b"")
    status, headers, pieces = REPLIES[reply](request_id, invocation)
    await send({"type": "http.response.start", "status": status, "headers": encoded(headers)})
    async for piece in pieces:
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    if reply == "reset":
        os._exit(9)
    await send({"type": "http.response.body", "body": b""})


async def once(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def endless() -> AsyncIterator[bytes]:
    for _ in range(ENDLESS_CHUNKS):
        yield CHUNK


def lines_of(request_id: str, *jsons: bytes) -> Any:
    return 200, lines_headers(request_id), once(*(line(request_id, each) for each in jsons))


def other_run(invocation: Invocation) -> Ended:
    return Ended("01990000-0000-7000-8000-000000000000", invocation.generation, 0, [Complete(Raw(b'"stolen"'))])


REPLIES: dict[str, Any] = {
    "html": lambda r, i: (200, {"content-type": "text/html"}, once(b"<html><h1>Welcome to nginx!</h1></html>")),
    "html_as_lines": lambda r, i: (200, lines_headers(r), once(b"<html>\n<h1>Welcome to nginx!</h1>\n</html>\n")),
    "truncated_line": lambda r, i: (200, lines_headers(r), once(good_end(r, i)[:-20])),
    "wrong_signature": lambda r, i: (200, lines_headers(r), once(line(r, end_of(i), STRANGERS_KEY))),
    "reply_to_another_request": lambda r, i: (200, lines_headers(r), once(good_end("msg_another", i))),
    "another_runs_reply": lambda r, i: lines_of(r, encode(other_run(i))),
    "another_generation": lambda r, i: lines_of(r, encode(Ended(i.run_id, i.generation + 1, 0, [Complete(Raw(b"1"))]))),
    "nothing": lambda r, i: (200, lines_headers(r), once()),
    "invalid_utf8": lambda r, i: lines_of(r, b'{"type":"ended","run_id":"\xff\xfe"}'),
    "deep_json": lambda r, i: lines_of(r, b'{"type":"ended","ops":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "unknown_type": lambda r, i: lines_of(r, b'{"type":"applause"}'),
    "claims_gzip": lambda r, i: (200, {**lines_headers(r), "content-encoding": "gzip"}, once(b"\x1f\x8b\x08" + b"\0" * 1000)),
    "redirect": lambda r, i: (302, {"location": "http://127.0.0.1:1/"}, once()),
    "unauthorized": lambda r, i: (401, {}, once(b"no")),
    "bad_gateway": lambda r, i: (502, {}, once(b"<html>bad gateway</html>")),
    "server_error": lambda r, i: (500, {}, once(b"Traceback")),
    "endless_line": lambda r, i: (200, lines_headers(r), endless()),
    "endless_body": lambda r, i: (200, {"content-type": "application/json"}, endless()),
    "endless_error": lambda r, i: (500, {}, endless()),
}


def good_end(request_id: str, invocation: Invocation) -> bytes:
    return line(request_id, end_of(invocation))


def end_of(invocation: Invocation) -> bytes:
    return encode(Ended(invocation.run_id, invocation.generation, 0, [Complete(Raw(b'"ok"'))]))


def line(request_id: str, text: bytes, key: signing.Key | None = None) -> bytes:
    return signing.sign_line(key or own_key(), request_id, int(time.time()), text)


def lines_headers(request_id: str) -> dict[str, str]:
    return {"content-type": LINES_TYPE, "webhook-id": signing.reply_id(request_id)}


async def answer_signed(send: Any, request_id: str, body: bytes) -> None:
    sent_at = int(time.time())
    headers = {
        "content-type": "application/json",
        "webhook-id": signing.reply_id(request_id),
        "webhook-timestamp": str(sent_at),
        "webhook-signature": signing.sign([own_key()], signing.reply_id(request_id), sent_at, body),
    }
    await answer(send, 200, headers, body)


async def answer(send: Any, status: int, headers: dict[str, str], body: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": encoded(headers)})
    await send({"type": "http.response.body", "body": body})


def encoded(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in headers.items()]


def own_key() -> signing.Key:
    return signing.Key.parse((Path(os.environ["DURABLE_HOME"]) / "dev.key").read_text().strip())


def beside_witness(name: str) -> Path:
    return Path(os.environ[witness_log.FILE_VARIABLE]).with_name(name)


MANIFEST = Manifest(
    Workspace(os.environ.get("RAW_APP", "shop"), "dev"),
    [1],
    [FunctionConfig("raw", [Trigger("raw.wanted")], retries=3, backoff=Backoff(0.2, 1, 1, jitter=False))],
    capabilities=Capabilities(checkpoint=True),
    deployment="raw",
)
