"""The bare floor: the rows of three-step runs written by a batched asyncpg loop on the same Postgres, with nothing around it.

What an engine could reach at most with this schema, if HTTP, signatures, decisions and Python cost nothing.
"""

from __future__ import annotations

import os
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import trio
import trio_asyncio

from engine.core.ids import uuid7
from engine.store.database import open_database
from engine.store.embedded_postgres import open_embedded_postgres
from engine.store.migrate import migrate

RUNS = 6_400
RUNS_PER_BATCH = 64

STATEMENTS = (
    """INSERT INTO event (event_id, workspace_id, seq, name, external_id, data, received_at, decisions)
       SELECT id, 1, nextval('event_seq'), 'three.wanted', id::text, '{"n":1}', now(), 1 FROM unnest($1::uuid[]) AS u (id)""",
    "INSERT INTO event_decision (event_id, function_id, decision, run_id) SELECT id, 1, 'run', id FROM unnest($1::uuid[]) AS u (id)",
    """INSERT INTO run (run_id, workspace_id, function_id, event_id, event_seq, created_at)
       SELECT id, 1, 1, id, 1, now() FROM unnest($1::uuid[]) AS u (id)""",
    """INSERT INTO live_run (run_id, workspace_id, function_id, state, order_at)
       SELECT id, 1, 1, 'ready', now() FROM unnest($1::uuid[]) AS u (id)""",
)
CLAIM = "UPDATE live_run SET state = 'leased', generation = 1, due_at = now() + interval '30 s' WHERE run_id = ANY($1::uuid[])"
STEP = """INSERT INTO step (run_id, step_id, position, kind, data, generation, started_at, duration_seconds)
          SELECT id, $2, $3, 'step', '1', 1, now(), 0 FROM unnest($1::uuid[]) AS u (id)"""
ADVANCE = "UPDATE live_run SET position = position + 1 WHERE run_id = ANY($1::uuid[])"
END = (
    "DELETE FROM live_run WHERE run_id = ANY($1::uuid[])",
    "INSERT INTO run_end (run_id, status, output, generation) SELECT id, 'completed', '1', 1 FROM unnest($1::uuid[]) AS u (id)",
    "INSERT INTO invocation (run_id, generation, attempt, outcome) SELECT id, 1, 1, 'completed' FROM unnest($1::uuid[]) AS u (id)",
)


def measure() -> dict[str, Any]:
    """Runs a second of the bare rows."""
    return trio.run(_measure)


async def _measure() -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="durable-bench-") as home:
        Path(home).chmod(0o755)
        async with open_embedded_postgres(Path(home) / "pgdata") as postgres, open_database(postgres.dsn) as database:
            await database.transact(migrate)
            await trio_asyncio.aio_as_trio(_write)(database._pool, RUNS // 10)
            seconds = await trio_asyncio.aio_as_trio(_write)(database._pool, RUNS)
    return {"floor.runs_per_second": RUNS / seconds}


async def _write(pool: Any, runs: int) -> float:
    started = time.perf_counter()
    async with pool.acquire() as connection:
        for _ in range(0, runs, RUNS_PER_BATCH):
            ids = [_new_id() for _ in range(RUNS_PER_BATCH)]
            async with connection.transaction():
                for statement in STATEMENTS:
                    await connection.execute(statement, ids)
            async with connection.transaction():
                await connection.execute(CLAIM, ids)
            for position, step_id in enumerate(("a", "b", "c"), 1):
                async with connection.transaction():
                    await connection.execute(STEP, ids, step_id, position)
                    await connection.execute(ADVANCE, ids)
            async with connection.transaction():
                for statement in END:
                    await connection.execute(statement, ids)
    return time.perf_counter() - started


def _new_id() -> UUID:
    return uuid7(int(datetime.now(UTC).timestamp() * 1000), os.urandom(10))
