"""HTTP as a stranger would speak it: signed or not, whole or broken, byte by byte. Nothing of the SDK but its signatures."""

from __future__ import annotations

import contextlib
import http.client
import json
import secrets
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from durable.signing import Key, sign

CONTENT = {"content-type": "application/json"}


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(port: int, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
    """One request as it is given, and its answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body, dict(headers or {}))
        answer = connection.getresponse()
        return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
    finally:
        connection.close()


def signed(
    key: str, body: bytes, *, workspace: str = "shop/dev", at: float | None = None, **changed: str | None
) -> dict[str, str]:
    """The headers of a signed request; `changed` replaces some (with _ for -), None leaves one out."""
    message_id, sent_at = f"msg_{secrets.token_hex(12)}", int(time.time() if at is None else at)
    headers: dict[str, str | None] = {
        **CONTENT,
        "durable-workspace": workspace,
        "webhook-id": message_id,
        "webhook-timestamp": str(sent_at),
        "webhook-signature": sign([Key.parse(key)], message_id, sent_at, body),
        **{name.replace("_", "-"): value for name, value in changed.items()},
    }
    return {name: value for name, value in headers.items() if value is not None}


def speak(port: int, sent: bytes, seconds: float = 10.0) -> bytes:
    """Send bytes, and what comes back until the other side ends the connection (or `seconds` have passed: an AssertionError)."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        # It may have ended the connection already; what it said before can still be read.
        with contextlib.suppress(OSError):
            connection.sendall(sent)
        got = bytearray()
        try:
            while part := connection.recv(65_536):
                got += part
        except ConnectionResetError:
            pass
        except TimeoutError:
            raise AssertionError(f"The connection was not ended within {seconds:g} s; it said {bytes(got[:500])!r}") from None
        return bytes(got)


def pour(port: int, head: bytes, part: bytes, bytes_max: int) -> tuple[int, bytes]:
    """Send `part` again and again until the other side answers or ends: how much went, and the answer. Gives up after bytes_max."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(head)
        poured = 0
        try:
            while poured < bytes_max:
                connection.sendall(part)
                poured += len(part)
                connection.settimeout(0.001)
                try:
                    if got := connection.recv(65_536):
                        return poured, got
                    return poured, b""
                except TimeoutError:
                    pass
                finally:
                    connection.settimeout(20)
        except (BrokenPipeError, ConnectionResetError):
            try:
                return poured, connection.recv(65_536)
            except OSError:
                return poured, b""
    return poured, b""
