"""Finishes new match shapes whose event name has many earlier events: a page of keys at a time, then the waits that stood pending.

Any engine goes on where another stopped; where it stands is a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from engine.store.event_buckets import lock_event_buckets
from engine.store.match_waits import LOCK_RUNS
from engine.store.register_waits import PreparedWait, WantedWait, backfill_page, look_back
from engine.store.resolve_waits import ResolvedWait, resolve_waits
from engine.store.sql import Connection, Sql

PENDING_PER_GROUP_MAX = 500

FIND_PENDING_SHAPE = Sql(
    "find_pending_shape",
    """
SELECT shape_id, workspace_id, event_name, paths, is_ready FROM event_shape AS shape
 WHERE NOT is_ready OR EXISTS (SELECT FROM wait WHERE wait.shape_id = shape.shape_id AND wait.is_pending)
 ORDER BY shape_id LIMIT 1""",
)
LOCK_SHAPE = Sql("lock_shape", "SELECT is_ready FROM event_shape WHERE shape_id = $shape_id FOR UPDATE SKIP LOCKED")
FIND_PENDING_WAITS = Sql(
    "find_pending_waits",
    "SELECT DISTINCT run_id FROM (SELECT run_id FROM wait WHERE shape_id = $shape_id AND is_pending LIMIT $waits_max) AS pending",
)
READ_PENDING_WAITS = Sql(
    "read_pending_waits",
    """
SELECT run_id, step_id, match, condition, registered_at FROM wait
 WHERE shape_id = $shape_id AND is_pending AND run_id = ANY($run_ids::uuid[]) ORDER BY wait_id""",
)
OPEN_WAITS = Sql(
    "open_pending_waits",
    "UPDATE wait SET is_pending = false WHERE shape_id = $shape_id AND is_pending AND run_id = ANY($run_ids::uuid[])",
)


@dataclass(frozen=True, slots=True)
class Backfilled:
    """Whether runs became due, and whether there is more to do."""

    has_due_runs: bool
    has_more: bool


async def backfill_shapes(conn: Connection) -> Backfilled:
    """One page of one shape, or one group of its pending waits."""
    shape = await conn.fetchrow(FIND_PENDING_SHAPE)
    if shape is None:
        return Backfilled(False, False)
    shape_id = shape["shape_id"]
    # The bucket first, as ingest and registration take it: nothing of this name moves while its waits are looked at.
    await lock_event_buckets(conn, exclusive=[(shape["workspace_id"], shape["event_name"])])
    locked = await conn.fetchrow(LOCK_SHAPE, shape_id=shape_id)
    if locked is None:
        return Backfilled(False, False)
    if not locked["is_ready"] and not await backfill_page(conn, shape_id, shape["paths"]):
        return Backfilled(False, True)
    pending = await conn.fetch(FIND_PENDING_WAITS, shape_id=shape_id, waits_max=PENDING_PER_GROUP_MAX)
    runs = await conn.fetch(LOCK_RUNS, run_ids=[row["run_id"] for row in pending])
    run_ids = [row["run_id"] for row in runs]
    waits = await conn.fetch(READ_PENDING_WAITS, shape_id=shape_id, run_ids=run_ids)
    prepared = [
        PreparedWait(
            WantedWait(
                shape["workspace_id"],
                row["run_id"],
                row["step_id"],
                shape["event_name"],
                msgspec.json.decode(row["match"]) if row["match"] else None,
                row["condition"],
                True,
            ),
            shape_id,
        )
        for row in waits
    ]
    looked = await look_back(conn, prepared)
    resolved = [
        ResolvedWait(
            wait.wanted.run_id,
            wait.wanted.step_id,
            "wait_for_event",
            wait.earlier.payload,
            wait.earlier.event_id,
            row["registered_at"],
        )
        for wait, row in zip(looked, waits, strict=True)
        if wait.earlier is not None
    ]
    woken = await resolve_waits(conn, resolved)
    await conn.execute(OPEN_WAITS, shape_id=shape_id, run_ids=run_ids)
    return Backfilled(bool(woken), True)
