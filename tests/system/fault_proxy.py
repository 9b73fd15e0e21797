"""A TCP proxy that does to connections what networks do: refuses, resets, swallows, delays, holds back, and cuts.

It runs in a thread with a Trio of its own, so that a test of any kind can steer it. A change of `fault` holds for new connections and
for bytes that come from then on.
"""

from __future__ import annotations

import random
import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import trio

from tests.system.processes import free_ports

Fault = Literal["none", "refuse", "reset", "black_hole", "delay", "truncate", "cut", "buffer"]
CHUNK_BYTES = 64 * 1024
# How soon a change of the fault is noticed.
LOOK_SECONDS = 0.02


@dataclass
class FaultProxy:
    """Listens on `port` and connects to `target`. `delay_seconds` is for "delay"; "truncate" ends a reply after `truncate_bytes`; "cut"
    resets a connection when a random number of bytes up to `cut_bytes_max` has passed in both directions together (`reseed`); "buffer"
    passes a reply on when it is whole.
    """

    target: int
    port: int
    fault: Fault = "none"
    delay_seconds: float = 0.2
    truncate_bytes: int = 40
    cut_bytes_max: int = 20_000
    connections: int = 0
    cuts: int = 0
    _chance: random.Random = field(default_factory=lambda: random.Random(0))
    _token: trio.lowlevel.TrioToken | None = None
    _scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    _streams: set[trio.SocketStream] = field(default_factory=set)

    def drop_connections(self) -> None:
        """Reset every connection that is open now."""
        assert self._token is not None
        done = threading.Event()

        def drop() -> None:
            for stream in list(self._streams):
                _reset(stream)
            done.set()

        self._token.run_sync_soon(drop)
        done.wait(5)

    def reseed(self, seed: int, *, cut_bytes_max: int) -> None:
        """Where "cut" falls from now on."""
        self._chance = random.Random(seed)
        self.cut_bytes_max = cut_bytes_max

    async def serve(self, is_up: threading.Event) -> None:
        """Listen until cancelled. While connections are to be refused there is no listener."""
        with self._scope:
            self._token = trio.lowlevel.current_trio_token()
            async with trio.open_nursery() as nursery:
                while True:
                    listener = trio.SocketListener(trio.socket.from_stdlib_socket(_listen(self.port)))
                    is_up.set()
                    async with listener:
                        while self.fault != "refuse":
                            with trio.move_on_after(LOOK_SECONDS):
                                nursery.start_soon(self._serve_connection, await listener.accept())
                    while self.fault == "refuse":
                        await trio.sleep(LOOK_SECONDS)

    async def _serve_connection(self, client: trio.SocketStream) -> None:
        self.connections += 1
        self._streams.add(client)
        try:
            if self.fault == "reset":
                _reset(client)
                return
            try:
                server = await trio.open_tcp_stream("127.0.0.1", self.target)
            except OSError:
                _reset(client)
                return
            self._streams.add(server)
            room = _Room(self._chance.randint(1, self.cut_bytes_max))
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._pass_on, client, server, room, False)
                    await self._pass_on(server, client, room, True)
                    nursery.cancel_scope.cancel()
            except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
                _reset(client)
            finally:
                self._streams.discard(server)
                await trio.aclose_forcefully(server)
        finally:
            self._streams.discard(client)
            await trio.aclose_forcefully(client)

    async def _pass_on(self, source: trio.SocketStream, sink: trio.SocketStream, room: _Room, is_reply: bool) -> None:
        passed_bytes = 0
        held = b""
        while chunk := await source.receive_some(CHUNK_BYTES):
            if self.fault == "reset":
                raise trio.BrokenResourceError("reset, as asked for")
            while self.fault == "black_hole":
                await trio.sleep(0.05)
            if self.fault == "delay":
                await trio.sleep(self.delay_seconds)
            if self.fault == "cut":
                if len(chunk) >= room.bytes:
                    await sink.send_all(chunk[: room.bytes])
                    self.cuts += 1
                    raise trio.BrokenResourceError("cut, as asked for")
                room.bytes -= len(chunk)
            if (self.fault == "buffer" or held) and is_reply:
                held += chunk
                if _is_whole_reply(held):
                    await sink.send_all(held)
                    held = b""
                continue
            if self.fault == "truncate" and is_reply:
                await sink.send_all(chunk[: max(self.truncate_bytes - passed_bytes, 0)])
                passed_bytes += len(chunk)
                if passed_bytes >= self.truncate_bytes:
                    return
                continue
            await sink.send_all(chunk)
        if held:
            await sink.send_all(held)
        while self.fault == "black_hole":
            # What is swallowed includes the end.
            await trio.sleep(0.05)
        if not is_reply:
            # The client has said all; its answer is still to come.
            await sink.send_eof()
            await trio.sleep_forever()


@dataclass
class _Room:
    """How many bytes may still pass over a connection before it is cut."""

    bytes: int


def _is_whole_reply(held: bytes) -> bool:
    """Whether this is an HTTP reply to its end, as hypercorn writes them."""
    head, _, body = held.partition(b"\r\n\r\n")
    words = head.lower()
    if b"transfer-encoding: chunked" in words:
        return body.endswith(b"0\r\n\r\n")
    if found := re.search(rb"content-length: (\d+)", words):
        return len(body) >= int(found[1])
    return False


@contextmanager
def open_proxy(target: int) -> Iterator[FaultProxy]:
    """A proxy in front of the port `target`, while the block lasts."""
    [port] = free_ports(1)
    proxy = FaultProxy(target, port)
    is_up = threading.Event()
    thread = threading.Thread(target=trio.run, args=(proxy.serve, is_up), name=f"proxy to {target}")
    thread.start()
    is_up.wait()
    try:
        yield proxy
    finally:
        assert proxy._token is not None
        proxy._token.run_sync_soon(proxy._scope.cancel)
        thread.join()


def _listen(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(512)
    return listener


def _reset(stream: trio.SocketStream) -> None:
    """Close with a reset instead of an end."""
    try:
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        stream.socket.close()
    except OSError:
        pass
