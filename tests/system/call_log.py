"""Which invocations travelled together: a line for each call that the app received, in `calls.jsonl` beside the witness."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.system.witness_log import FILE_VARIABLE

CALLS_FILE = "calls.jsonl"
Asgi = Callable[[Any, Any, Any], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class ReceivedCall:
    """`runs`: (run id, generation) of each invocation in it."""

    at: float
    pid: int
    runs: tuple[tuple[str, int], ...]


def logged(asgi: Asgi) -> Asgi:
    """The app, which writes down each call that it gets, before it looks at it."""

    async def call(scope: Any, receive: Any, send: Any) -> None:
        parts: list[bytes] = []

        async def receive_logged() -> Any:
            message = await receive()
            if message["type"] == "http.request" and scope["method"] == "POST":
                parts.append(message.get("body", b""))
                if not message.get("more_body", False):
                    _write(b"".join(parts))
            return message

        await asgi(scope, receive_logged if scope["type"] == "http" else receive, send)

    return call


def read(witness_file: Path) -> list[ReceivedCall]:
    """All calls so far."""
    path = witness_file.with_name(CALLS_FILE)
    if not path.exists():
        return []
    found = [json.loads(text) for text in path.read_text().split("\n")[:-1]]
    return [
        ReceivedCall(each["at"], each["pid"], tuple((run_id, generation) for run_id, generation in each["runs"]))
        for each in found
    ]


def _write(body: bytes) -> None:
    message = json.loads(body)
    if message.get("type") != "invoke":
        return
    runs = [[each["run_id"], each["generation"]] for each in message["invocations"]]
    path = Path(os.environ[FILE_VARIABLE]).with_name(CALLS_FILE)
    with open(path, "ab", buffering=0) as log:
        log.write((json.dumps({"at": time.time(), "pid": os.getpid(), "runs": runs}) + "\n").encode())
