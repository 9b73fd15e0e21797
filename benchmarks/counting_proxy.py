"""A program: a TCP proxy that notes how many bytes went through, in both directions together, and when.

`python -m benchmarks.counting_proxy COUNTS LISTEN:TO…` listens on each LISTEN port and connects to its TO port. Each chunk of bytes
adds a record to the file COUNTS: the time and the bytes so far. `read_counts` reads them while the program runs.
"""

from __future__ import annotations

import asyncio
import os
import struct
import sys
import time
from bisect import bisect_right
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

RECORD = struct.Struct("<dQ")


@dataclass(frozen=True)
class Counts:
    """What went through: `totals[i]` bytes until `times[i]` (seconds since 1970), in order."""

    times: list[float]
    totals: list[int]

    def between(self, since: float, until: float) -> int:
        """Bytes that went through from `since` until `until`."""
        return self._until(until) - self._until(since)

    def _until(self, instant: float) -> int:
        place = bisect_right(self.times, instant)
        return self.totals[place - 1] if place else 0


def read_counts(path: Path) -> Counts:
    """All records so far; one that is half written is left for the next time."""
    data = path.read_bytes()
    records = list(RECORD.iter_unpack(data[: len(data) - len(data) % RECORD.size]))
    return Counts([instant for instant, _ in records], [total for _, total in records])


class Meter:
    """Adds up bytes and writes a record for each chunk."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._total = 0

    def add(self, count: int) -> None:
        self._total += count
        os.write(self._file, RECORD.pack(time.time(), self._total))


class Side(asyncio.Protocol):
    """One end of a proxied connection; what it gets goes out at its `peer`."""

    def __init__(self, meter: Meter, peer: Side | None = None, to_port: int = 0) -> None:
        self._meter = meter
        self._to_port = to_port
        self.peer = peer
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        if self.peer is None:
            # Nothing is read before there is somewhere to send it.
            self.transport.pause_reading()
            self._connecting = asyncio.ensure_future(self._connect())

    async def _connect(self) -> None:
        assert self.transport is not None
        try:
            await asyncio.get_running_loop().create_connection(self._other_side, "127.0.0.1", self._to_port)
        except OSError:
            # To who connects it looks as it would without a proxy: nobody is there.
            self.transport.abort()
            return
        if not self.transport.is_closing():
            self.transport.resume_reading()

    def _other_side(self) -> Side:
        self.peer = Side(self._meter, self)
        return self.peer

    def data_received(self, data: bytes) -> None:
        self._meter.add(len(data))
        if self.peer is not None and self.peer.transport is not None:
            self.peer.transport.write(data)

    def eof_received(self) -> bool:
        if self.peer is not None and self.peer.transport is not None and self.peer.transport.can_write_eof():
            self.peer.transport.write_eof()
        return True

    def connection_lost(self, error: Exception | None) -> None:
        if self.peer is not None and self.peer.transport is not None:
            self.peer.transport.close()

    def pause_writing(self) -> None:
        if self.peer is not None and self.peer.transport is not None:
            self.peer.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.peer is not None and self.peer.transport is not None and not self.peer.transport.is_closing():
            self.peer.transport.resume_reading()


async def serve(path: Path, ports: list[tuple[int, int]]) -> None:
    """Listen on all ports until cancelled."""
    meter, loop = Meter(path), asyncio.get_running_loop()
    for listen_port, to_port in ports:
        await loop.create_server(partial(Side, meter, to_port=to_port), "127.0.0.1", listen_port)
    await loop.create_future()


if __name__ == "__main__":
    pairs = [word.split(":") for word in sys.argv[2:]]
    asyncio.run(serve(Path(sys.argv[1]), [(int(listen), int(to)) for listen, to in pairs]))
