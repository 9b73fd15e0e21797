"""The floor writes the rows that a real run of three steps writes: the same number in the same tables, with the same columns filled."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any
from uuid import uuid4

import msgspec
import trio_asyncio
from msgspec import Raw

from benchmarks.floor import STEP_IDS, Batch, write_batch
from engine.store.database import Database
from protocol.ops import Complete
from tests.engine.store.world import World, function, make_world, step

Row = tuple[frozenset[str], int]
# Lengths of numbers as text differ by a digit; a column of its own would differ by more.
ROW_BYTES_APART_MAX = 8


async def test_floor_writes_the_rows_of_a_real_run(database: Database) -> None:
    world = await make_world(database, function("three", "three.wanted"))
    at_first = await read_rows(world)

    await run_three_steps(world)
    real = await read_rows(world)
    await trio_asyncio.aio_as_trio(write_bare_run)(database)
    both = await read_rows(world)

    real_rows, bare_rows = {}, {}
    for table in both:
        real_rows[table] = sorted_rows(real[table] - at_first[table])
        bare_rows[table] = sorted_rows(both[table] - real[table])
    written = {"event_dedup", "event", "event_decision", "run", "step", "run_end", "invocation"}
    assert {table for table, rows in real_rows.items() if rows} == written
    for table in written:
        assert [columns for columns, _ in bare_rows[table]] == [columns for columns, _ in real_rows[table]], table
        for (_, bare_bytes), (_, real_bytes) in zip(bare_rows[table], real_rows[table], strict=True):
            assert abs(bare_bytes - real_bytes) <= ROW_BYTES_APART_MAX, table
    assert not any(rows for table, rows in bare_rows.items() if table not in written)


async def run_three_steps(world: World) -> None:
    await world.append(world.event("three.wanted", {"n": 1}, str(uuid4())))
    lease = await world.claim_one()
    for position, step_id in enumerate(STEP_IDS):
        op = msgspec.structs.replace(step(step_id, position + 2), seen=position)
        assert (await world.say(lease, op, known=position)).status == "ok"
    assert (await world.say(lease, Complete(Raw(b"4")), known=len(STEP_IDS), ends=True)).status == "ok"


async def write_bare_run(database: Database) -> None:
    async with database._pool.acquire() as connection:
        await write_batch(connection, Batch.new(1), uuid4())


async def read_rows(world: World) -> dict[str, Counter[tuple[str, Row]]]:
    """Every row of every table, as its text, with which columns are filled and how long it is."""
    tables = await world.rows("SELECT relname FROM pg_stat_user_tables ORDER BY relname")
    found: dict[str, Counter[tuple[str, Row]]] = defaultdict(Counter)
    for table in (each["relname"] for each in tables):
        for each in await world.rows(f"SELECT to_jsonb(t)::text AS row, pg_column_size(t.*) AS bytes FROM {table} AS t"):
            values: dict[str, Any] = msgspec.json.decode(each["row"])
            filled = frozenset(name for name, value in values.items() if value is not None)
            found[table][each["row"], (filled, each["bytes"])] += 1
        found.setdefault(table, Counter())
    return found


def sorted_rows(rows: Counter[tuple[str, Row]]) -> list[Row]:
    return sorted((row for _, row in rows.elements()), key=lambda row: (sorted(row[0]), row[1]))
