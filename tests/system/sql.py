"""Questions to the database of a system under test, over Postgres' socket, beside the engine and never through it.

Every question has a connection of its own in a thread of its own: Postgres may have been killed a moment ago, and the test may run
inside of any loop.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import asyncpg

AWAY = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)


class DatabaseAway(Exception):
    """Postgres does not answer now: a fault is under way, or it never came up."""


def query(dsn: str, text: str, *values: object) -> list[dict[str, Any]]:
    """The rows; DatabaseAway while there is no Postgres."""
    rows: list[dict[str, Any]] = []
    failures: list[BaseException] = []

    async def ask() -> None:
        connection = await asyncpg.connect(dsn, timeout=5)
        try:
            rows.extend(dict(row) for row in await connection.fetch(text, *values, timeout=20))
        finally:
            await connection.close()

    def run() -> None:
        try:
            asyncio.run(ask())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failures and isinstance(failures[0], (*AWAY, asyncio.TimeoutError)):
        raise DatabaseAway(str(failures[0])) from failures[0]
    if failures:
        raise failures[0]
    return rows
