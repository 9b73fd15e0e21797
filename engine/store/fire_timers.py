"""Ends waits whose time has come and makes delayed runs ready. The database's clock alone says what is due: nothing fires early.

A wait that an event ended first is gone, and its timer finds nothing: whichever commits first wins, once.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.store.crash_points import crash_point
from engine.store.resolve_waits import ResolvedWait, resolve_waits
from engine.store.sql import Connection, Sql

FIRED_PER_GROUP_MAX = 500

FIND_DUE_WAITS = Sql(
    "find_due_waits",
    """
SELECT run_id, count(*) AS waits FROM (
  SELECT run_id FROM wait WHERE deadline_at <= clock_timestamp() AND NOT is_pending ORDER BY deadline_at LIMIT $waits_max) AS due
 GROUP BY run_id""",
)
# The run before its waits, as apply and ingest do it; the other order deadlocks.
LOCK_DUE_RUNS = Sql(
    "lock_due_runs",
    "SELECT run_id FROM live_run WHERE run_id = ANY($run_ids::uuid[]) AND state <> 'cancelled' ORDER BY run_id FOR UPDATE SKIP LOCKED",
)
READ_DUE_WAITS = Sql(
    "read_due_waits",
    """
SELECT run_id, step_id, kind, registered_at FROM wait
 WHERE run_id = ANY($run_ids::uuid[]) AND deadline_at <= clock_timestamp() AND NOT is_pending
 ORDER BY deadline_at, wait_id""",
)
WAKE_DELAYED = Sql(
    "wake_delayed",
    """
UPDATE live_run SET state = 'ready', due_at = NULL, order_at = clock_timestamp()
 WHERE run_id IN (SELECT run_id FROM live_run WHERE state = 'delayed' AND due_at <= clock_timestamp()
                   ORDER BY due_at LIMIT $runs_max FOR UPDATE SKIP LOCKED)""",
)
# In two parts, so that each is one step along its index.
READ_NEAR_DEADLINES = Sql(
    "read_near_deadlines",
    """
(SELECT 'wait' AS what, run_id, step_id, extract(epoch FROM deadline_at - clock_timestamp())::float8 AS in_seconds
   FROM wait WHERE NOT is_pending AND deadline_at < clock_timestamp() + make_interval(secs => $horizon_seconds)
  ORDER BY deadline_at LIMIT $rows_max)
UNION ALL
(SELECT 'run', run_id, '', extract(epoch FROM due_at - clock_timestamp())::float8
   FROM live_run WHERE state = 'delayed' AND due_at < clock_timestamp() + make_interval(secs => $horizon_seconds)
  ORDER BY due_at LIMIT $rows_max)""",
)
READ_NEXT_DEADLINE = Sql(
    "read_next_deadline",
    """
SELECT extract(epoch FROM least(
         (SELECT deadline_at FROM wait WHERE NOT is_pending ORDER BY deadline_at LIMIT 1),
         (SELECT due_at FROM live_run WHERE state = 'delayed' ORDER BY due_at LIMIT 1)) - clock_timestamp())::float8""",
)


@dataclass(frozen=True, slots=True)
class Fired:
    """How many timers fired, whether runs became due, whether more may be due already, and whether some runs were locked."""

    count: int
    has_due_runs: bool
    has_more: bool
    has_locked: bool = False


@dataclass(frozen=True, slots=True)
class Deadline:
    """A timer of the next moments: of a wait (with its step), or of a delayed run."""

    what: str
    run_id: object
    step_id: str
    in_seconds: float


async def fire_timers(conn: Connection) -> Fired:
    """Fire what is due, a group of it."""
    crash_point("timer_before_fire")
    ended, woken, has_locked = 0, 0, False
    due = await conn.fetch(FIND_DUE_WAITS, waits_max=FIRED_PER_GROUP_MAX)
    has_due_runs = False
    if due:
        locked = await conn.fetch(LOCK_DUE_RUNS, run_ids=[row["run_id"] for row in due])
        rows = await conn.fetch(READ_DUE_WAITS, run_ids=[row["run_id"] for row in locked])
        waits = [ResolvedWait(row["run_id"], row["step_id"], row["kind"], "null", None, row["registered_at"]) for row in rows]
        has_due_runs = bool(await resolve_waits(conn, waits))
        ended = len(waits)
        has_locked = len(locked) < len(due)
    woken = await conn.execute(WAKE_DELAYED, runs_max=FIRED_PER_GROUP_MAX)
    found = sum(row["waits"] for row in due)
    return Fired(ended + woken, has_due_runs or woken > 0, FIRED_PER_GROUP_MAX in (found, woken), has_locked)


async def read_near_deadlines(conn: Connection, horizon_seconds: float, rows_max: int) -> list[Deadline]:
    """The timers due within the horizon, the nearest first."""
    rows = await conn.fetch(READ_NEAR_DEADLINES, horizon_seconds=horizon_seconds, rows_max=rows_max)
    return [Deadline(**dict(row)) for row in rows]


async def read_next_deadline(conn: Connection) -> float | None:
    """Seconds until the very next timer; None when there is none."""
    seconds: float | None = await conn.fetchval(READ_NEXT_DEADLINE)
    return seconds
