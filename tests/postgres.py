"""A real Postgres for tests: one cluster a session, one fresh migrated database a test.

`postgres_dsn` is the address of an empty, migrated database; `database` is it opened. The postmaster lives in a thread with a
Trio of its own, so that no test's loop, clock or cancellation reaches it.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import pytest
import trio

from engine.store.database import Database, open_database
from engine.store.embedded_postgres import EmbeddedPostgres, open_embedded_postgres
from engine.store.migrate import migrate
from engine.store.sql import Connection

T = TypeVar("T")

TEMPLATE = "test_template"


@dataclass
class Cluster:
    """A running Postgres that makes databases."""

    postgres: EmbeddedPostgres
    numbers: Iterator[int] = field(default_factory=count)

    def dsn_of(self, name: str) -> str:
        return self.postgres.dsn.replace(f"/{self.postgres.database}?", f"/{name}?")

    def create_database(self) -> str:
        """The name of a new database, migrated and empty."""
        name = f"test_{next(self.numbers)}"
        self.run(lambda raw: raw.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}"))
        return name

    def drop_database(self, name: str) -> None:
        self.run(lambda raw: raw.execute(f"DROP DATABASE {name} WITH (FORCE)"))

    def make_template(self) -> None:
        self.run(lambda raw: raw.execute(f"CREATE DATABASE {TEMPLATE}"))

        async def fill(raw: Any) -> None:
            async with raw.transaction():
                await migrate(Connection(raw))

        self.run(fill, TEMPLATE)

    def run(self, work: Callable[[Any], Awaitable[T]], name: str | None = None) -> T:
        """Run `work` on a connection of its own, outside of any loop of the test."""
        results: list[T] = []
        failures: list[BaseException] = []

        async def connect_and_work() -> T:
            raw = await asyncpg.connect(self.dsn_of(name or self.postgres.database))
            try:
                return await work(raw)
            finally:
                await raw.close()

        def in_thread() -> None:
            try:
                results.append(asyncio.run(connect_and_work()))
            except BaseException as error:
                failures.append(error)

        # A thread, because a Trio or asyncio loop may be running in this one.
        thread = threading.Thread(target=in_thread)
        thread.start()
        thread.join()
        if failures:
            raise failures[0]
        return results[0]


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    home = Path(tempfile.mkdtemp(prefix="durable-test-"))
    # Run as root, Postgres is another user, who must get through.
    home.chmod(0o711)
    started: list[EmbeddedPostgres] = []
    failures: list[BaseException] = []
    is_up = threading.Event()
    tokens: list[tuple[trio.lowlevel.TrioToken, trio.CancelScope]] = []

    async def hold() -> None:
        with trio.CancelScope() as scope:
            tokens.append((trio.lowlevel.current_trio_token(), scope))
            async with open_embedded_postgres(home / "pgdata", fsync=False) as postgres:
                started.append(postgres)
                is_up.set()
                await trio.sleep_forever()

    def run() -> None:
        try:
            trio.run(hold)
        except BaseException as error:
            failures.append(error)
        finally:
            is_up.set()

    thread = threading.Thread(target=run, name="postgres")
    thread.start()
    is_up.wait()
    try:
        if not started:
            raise failures[0]
        made = Cluster(started[0])
        made.make_template()
        yield made
    finally:
        if thread.is_alive():
            token, scope = tokens[0]
            token.run_sync_soon(scope.cancel)
        thread.join()
        shutil.rmtree(home, ignore_errors=True)
    if failures:
        raise failures[0]


@pytest.fixture
def postgres_dsn(cluster: Cluster) -> Iterator[str]:
    name = cluster.create_database()
    yield cluster.dsn_of(name)
    cluster.drop_database(name)


@pytest.fixture
async def database(postgres_dsn: str) -> AsyncIterator[Database]:
    async with open_database(postgres_dsn, connections_max=6) as opened:
        yield opened
