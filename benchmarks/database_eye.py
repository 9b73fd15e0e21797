"""Looks at the database of a system that is measured, on a connection of its own beside the engine's.

A look is one cheap query. The engine takes no part in it, so what it costs is Postgres' and the client's, and is counted there.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import asyncpg

from benchmarks.bench_failed import BenchFailed

LOOK_SECONDS_MAX = 30.0
SAMPLE_SECONDS = 0.2


@dataclass
class DatabaseEye:
    """An open connection whose loop runs in a thread, so that plain code may ask."""

    _loop: asyncio.AbstractEventLoop
    _connection: Any
    # A connection answers one question at a time, and samples are taken beside the others.
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def rows(self, text: str, *values: object) -> list[Any]:
        """The rows of a question."""
        with self._turn:
            return list(_done(self._loop, self._connection.fetch(text, *values)))

    def row(self, text: str, *values: object) -> Any:
        """The only row of a question."""
        [row] = self.rows(text, *values)
        return row

    def value(self, text: str, *values: object) -> Any:
        """The only value of a question."""
        return self.row(text, *values)[0]

    def change(self, text: str, *values: object) -> None:
        """Write something that the engine would write by itself, but later or only for a while."""
        with self._turn:
            _done(self._loop, self._connection.execute(text, *values))

    def now(self) -> datetime:
        """The database's clock, by which runs end."""
        now: datetime = self.value("SELECT clock_timestamp()")
        return now

    def runs_in_flight(self) -> int:
        """Runs that an engine executes now, by the index of leases."""
        return int(self.value("SELECT count(*) FROM live_run WHERE state IN ('leased', 'cancelled')"))

    def has_live_runs(self) -> bool:
        """Whether any run has not ended."""
        return bool(self.value("SELECT EXISTS (SELECT FROM live_run)"))

    @contextmanager
    def sampling_in_flight(self) -> Iterator[InFlightSamples]:
        """Note five times a second how many runs are in flight, while the block runs."""
        samples = InFlightSamples()
        is_over = threading.Event()

        def sample() -> None:
            while not is_over.wait(SAMPLE_SECONDS):
                samples.counts.append(self.runs_in_flight())

        thread = threading.Thread(target=sample)
        thread.start()
        try:
            yield samples
        finally:
            is_over.set()
            thread.join()


@dataclass
class InFlightSamples:
    """How many runs were in flight, each time it was looked."""

    counts: list[int] = field(default_factory=list)

    @property
    def mean(self) -> float:
        """Without the looks before the first run and after the last."""
        busy = [count for count in self.counts if count]
        return sum(busy) / len(busy) if busy else 0.0

    @property
    def most(self) -> int:
        return max(self.counts, default=0)


@contextmanager
def open_database_eye(dsn: str) -> Iterator[DatabaseEye]:
    """Connect, and leave nothing behind."""
    # Not what asyncio would choose: with trio-asyncio loaded, that is a loop for the main thread.
    loop = asyncio.SelectorEventLoop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        connection = _done(loop, asyncpg.connect(dsn))
        try:
            yield DatabaseEye(loop, connection)
        finally:
            loop.call_soon_threadsafe(connection.terminate)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def _done(loop: asyncio.AbstractEventLoop, work: Any) -> Any:
    """The result of a coroutine on the loop of the thread."""

    async def finish() -> Any:
        return await work

    try:
        return asyncio.run_coroutine_threadsafe(finish(), loop).result(LOOK_SECONDS_MAX)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise BenchFailed(f"The database of the system could not be asked: {error or type(error).__name__}") from error
