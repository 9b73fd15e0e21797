"""The bare floor: the rows of three-step runs written by a batched asyncpg loop on the same Postgres, with nothing around it.

What an engine could reach at most with this schema, if HTTP, signatures, decisions and Python cost nothing. A test compares the rows
with those of a real run, so that the floor does not sink unnoticed.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import trio
import trio_asyncio

from benchmarks.sizes import Sizes
from engine.core.ids import uuid7
from engine.store.database import open_database
from engine.store.embedded_postgres import open_embedded_postgres
from engine.store.migrate import migrate

RUNS_PER_BATCH = 64
STEP_IDS = ("a", "b", "c")

# $1: ids, each of an event and of the run that it starts; $2: the ids that the sender gave the events.
INGEST = (
    """INSERT INTO event_dedup (workspace_id, scope, external_id, event_id, body_sha256, expires_at)
       SELECT 1, 'event', external_id, id, sha256(id::text::bytea), now() + interval '24 hours'
         FROM unnest($1::uuid[], $2::text[]) AS u (id, external_id)""",
    """INSERT INTO event (event_id, workspace_id, seq, name, external_id, data, received_at, decisions)
       SELECT id, 1, nextval('event_seq'), 'three.wanted', external_id, '{"n":1}', clock_timestamp(), 1
         FROM unnest($1::uuid[], $2::text[]) AS u (id, external_id)""",
    """INSERT INTO event_decision (event_id, function_id, decision, run_id)
       SELECT id, 1, 'run', id FROM unnest($1::uuid[], $2::text[]) AS u (id, external_id)""",
    """INSERT INTO run (run_id, workspace_id, function_id, event_id, event_seq, created_at)
       SELECT id, 1, 1, id, 1, clock_timestamp() FROM unnest($1::uuid[], $2::text[]) AS u (id, external_id)""",
    """INSERT INTO live_run (run_id, workspace_id, function_id, state, order_at)
       SELECT id, 1, 1, 'ready', clock_timestamp() FROM unnest($1::uuid[], $2::text[]) AS u (id, external_id)""",
)
CLAIM = """UPDATE live_run SET state = 'leased', generation = 1, engine_id = $2, leased_at = clock_timestamp(),
                               due_at = clock_timestamp() + interval '30 s' WHERE run_id = ANY($1::uuid[])"""
STEP = """INSERT INTO step (run_id, step_id, position, kind, data, seen, generation, started_at, duration_seconds)
          SELECT id, $2, $3, 'step', '1', $3 - 1, 1, now(), 0.0001 FROM unnest($1::uuid[]) AS u (id)"""
ADVANCE = "UPDATE live_run SET position = position + 1, memo_bytes = memo_bytes + 1 WHERE run_id = ANY($1::uuid[])"
END = (
    """INSERT INTO invocation (run_id, generation, engine_id, attempt, leased_at, outcome)
       SELECT run_id, generation, engine_id, attempt, leased_at, 'completed' FROM live_run WHERE run_id = ANY($1::uuid[])""",
    "DELETE FROM live_run WHERE run_id = ANY($1::uuid[])",
    "INSERT INTO run_end (run_id, status, output, generation) SELECT id, 'completed', '1', 1 FROM unnest($1::uuid[]) AS u (id)",
)


@dataclass(frozen=True)
class Batch:
    """Runs that are written together. A run has the id of its event."""

    run_ids: list[UUID]
    sent_ids: list[str]

    @classmethod
    def new(cls, runs: int) -> Batch:
        return cls([_new_id() for _ in range(runs)], [str(uuid4()) for _ in range(runs)])


def measure(sizes: Sizes) -> dict[str, float]:
    """Runs a second of the bare rows."""
    return trio.run(_measure, sizes.floor_runs)


async def _measure(runs: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="durable-bench-") as home:
        Path(home).chmod(0o755)
        async with open_embedded_postgres(Path(home) / "pgdata") as postgres, open_database(postgres.dsn) as database:
            await database.transact(migrate)
            await trio_asyncio.aio_as_trio(_write)(database._pool, runs // 10)
            seconds = await trio_asyncio.aio_as_trio(_write)(database._pool, runs)
    return {"floor.runs_per_second": runs / seconds}


async def _write(pool: Any, runs: int) -> float:
    started, engine_id = time.perf_counter(), uuid4()
    async with pool.acquire() as connection:
        for first in range(0, runs, RUNS_PER_BATCH):
            await write_batch(connection, Batch.new(min(RUNS_PER_BATCH, runs - first)), engine_id)
    return time.perf_counter() - started


async def write_batch(connection: Any, batch: Batch, engine_id: UUID) -> None:
    """Write all rows of a batch's runs, each change of state in a transaction of its own, as runs have them."""
    await _in_one_transaction(connection, [(statement, (batch.run_ids, batch.sent_ids)) for statement in INGEST])
    await _in_one_transaction(connection, [(CLAIM, (batch.run_ids, engine_id))])
    for position, step_id in enumerate(STEP_IDS, 1):
        await _in_one_transaction(connection, [(STEP, (batch.run_ids, step_id, position)), (ADVANCE, (batch.run_ids,))])
    await _in_one_transaction(connection, [(statement, (batch.run_ids,)) for statement in END])


async def _in_one_transaction(connection: Any, statements: Sequence[tuple[str, tuple[object, ...]]]) -> None:
    async with connection.transaction():
        for statement, values in statements:
            await connection.execute(statement, *values)


def _new_id() -> UUID:
    return uuid7(int(datetime.now(UTC).timestamp() * 1000), os.urandom(10))
