"""The load client: signed requests over kept-alive sockets, with as little CPU as Python allows, since it shares the cores with what it loads.

Every request is signed and the signature of every answer is verified, as an SDK does. Anything but a good answer is BenchFailed:
a number that contains refusals says nothing.
"""

from __future__ import annotations

import selectors
import socket
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from msgspec import Raw

from benchmarks.bench_failed import BenchFailed
from protocol.manifest import Manifest, Workspace
from protocol.messages import decode_events_answer, decode_result_answer, encode
from protocol.ops import EventIn
from protocol.requests import EventAnswer, Events, Result, Sync
from protocol.signing import Key, SignatureError, reply_id, sign, verify

# Beyond the 30 s that the engine holds a question for a result.
ANSWER_SECONDS_MAX: Final = 45.0
CHUNK_BYTES: Final = 1 << 18
WORKSPACE: Final = Workspace("bench", "dev")


class LeanConnection:
    """One connection to the engine. `send` and `receive` are for loops over several; the others do one whole request."""

    def __init__(self, port: int, key: Key, workspace: Workspace = WORKSPACE) -> None:
        self._keys, self._workspace = (key,), workspace
        self._head = f"host: 127.0.0.1:{port}\r\ndurable-workspace: {workspace}\r\ncontent-type: application/json\r\n"
        self._got = bytearray()
        self._request_id = ""
        try:
            self.socket = socket.create_connection(("127.0.0.1", port), timeout=ANSWER_SECONDS_MAX)
        except OSError as error:
            raise BenchFailed(f"The engine does not take connections any more: {error}") from None
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send_events(self, events: Sequence[EventIn]) -> list[EventAnswer]:
        """Send them as one message; an answer for each."""
        return list(decode_events_answer(self.ask("/v1/events", events_body(events, self._workspace))).events)

    def wait_completed(self, run_id: str, wait_seconds: int) -> None:
        """Ask for the result until the run has ended; BenchFailed unless it completed."""
        body = encode(Result(self._workspace, run_id, wait_seconds))
        while (answer := decode_result_answer(self.ask("/v1/result", body))).status not in ("completed", "failed", "cancelled"):
            pass
        if answer.status != "completed":
            raise BenchFailed(f"The run {run_id} was to complete, but it has {answer.status}.")

    def sync(self, url: str, manifest: Manifest) -> None:
        self.ask("/v1/sync", encode(Sync(self._workspace, url, manifest)), "PUT")

    def ask(self, path: str, body: bytes, method: str = "POST") -> bytes:
        """One request; the body of its answer."""
        self.send(path, body, method)
        while (answer := self.receive()) is None:
            pass
        return answer

    def send(self, path: str, body: bytes, method: str = "POST") -> None:
        """Send a request, for whose answer `receive` is asked."""
        self._request_id, now = f"msg_{uuid.uuid4().hex}", int(time.time())
        head = (
            f"{method} {path} HTTP/1.1\r\n{self._head}content-length: {len(body)}\r\nwebhook-id: {self._request_id}\r\n"
            f"webhook-timestamp: {now}\r\nwebhook-signature: {sign(self._keys, self._request_id, now, body)}\r\n\r\n"
        )
        try:
            self.socket.sendall(head.encode() + body)
        except OSError as error:
            raise BenchFailed(f"A request to the engine could not be sent: {error}") from None

    def receive(self) -> bytes | None:
        """Read once; the verified body when the answer is whole, else None."""
        try:
            chunk = self.socket.recv(CHUNK_BYTES)
        except TimeoutError:
            raise BenchFailed(f"The engine did not answer in {ANSWER_SECONDS_MAX:g} s.") from None
        except OSError as error:
            raise BenchFailed(f"A connection to the engine broke: {error}") from None
        if not chunk:
            raise BenchFailed("The engine closed a connection in the middle of a request.")
        self._got += chunk
        head, found, rest = self._got.partition(b"\r\n\r\n")
        if not found:
            return None
        status_line, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = _whole_body(headers, bytes(rest))
        if body is None:
            return None
        self._got.clear()
        if status_line.split(" ", 2)[1] not in ("200", "202"):
            raise BenchFailed(f"The engine refused a request: {status_line}: {body.decode(errors='replace')[:500]}")
        self._require_signed(headers, body)
        return body

    def close(self) -> None:
        self.socket.close()

    def _require_signed(self, headers: dict[str, str], body: bytes) -> None:
        answer_id = headers.get("webhook-id")
        try:
            verify(self._keys, answer_id, headers.get("webhook-timestamp"), headers.get("webhook-signature"), body, time.time())
        except SignatureError as error:
            raise BenchFailed(f"The signature of an answer is not good: {error.message}") from None
        if answer_id != reply_id(self._request_id):
            raise BenchFailed("An answer belongs to another request.")


def read_key(home: Path) -> Key:
    """The key of `durable dev` with this DURABLE_HOME."""
    return Key.parse((home / "dev.key").read_text().strip())


def new_events(name: str, count: int, data: bytes = b'{"n":1}') -> list[EventIn]:
    """Events with ids, as SDKs send them."""
    return [EventIn(name, Raw(data), str(uuid.uuid4())) for _ in range(count)]


def events_body(events: Sequence[EventIn], workspace: Workspace = WORKSPACE) -> bytes:
    return encode(Events(workspace, list(events)))


def ask_side_by_side(connections: Sequence[LeanConnection], path: str, new_body: Callable[[], bytes], until: float) -> int:
    """One request after the other on each connection until `until` (time.perf_counter()); how many were answered.

    No request begins after `until`, and those under way are still answered.
    """
    answered = 0
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            selector.register(connection.socket, selectors.EVENT_READ, connection)
            connection.send(path, new_body())
        under_way = len(connections)
        while under_way:
            ready = selector.select(ANSWER_SECONDS_MAX)
            if not ready:
                raise BenchFailed(f"The engine did not answer in {ANSWER_SECONDS_MAX:g} s.")
            for key, _ in ready:
                connection = key.data
                if connection.receive() is None:
                    continue
                answered += 1
                if time.perf_counter() < until:
                    connection.send(path, new_body())
                else:
                    under_way -= 1
    return answered


def _whole_body(headers: dict[str, str], rest: bytes) -> bytes | None:
    """The body, once `rest` holds all of it."""
    if "chunked" in headers.get("transfer-encoding", ""):
        return _unchunked(rest) if rest.endswith(b"0\r\n\r\n") else None
    length = int(headers.get("content-length", "0"))
    return rest if len(rest) >= length else None


def _unchunked(rest: bytes) -> bytes | None:
    body, place = bytearray(), 0
    while True:
        size_text, found, _ = rest[place : place + 20].partition(b"\r\n")
        if not found:
            return None
        size = int(size_text, 16)
        if size == 0:
            return bytes(body)
        place += len(size_text) + 2
        body += rest[place : place + size]
        place += size + 2
