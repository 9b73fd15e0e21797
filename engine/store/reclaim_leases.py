"""Takes runs back whose lease ended: their engine died, or the app's process froze. Their slots are freed here, not before.

A lease is left alone for two seconds beyond its end: bodies stop two seconds before it, so none runs while its slot is given on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import UUID

from engine.core.decide import decide
from engine.core.outcome import Interrupted
from engine.core.run import NOTHING_RECORDED, LiveRun
from engine.core.transition import Transition
from engine.store.crash_points import crash_point
from engine.store.function_configs import read_function_configs
from engine.store.release_slots import release_slots
from engine.store.sql import Connection, Sql
from engine.store.write_transitions import Decided, write_transitions

GRACE_SECONDS = 2.0
RECLAIMED_PER_GROUP_MAX = 200

LOCK_EXPIRED_RUNS = Sql(
    "lock_expired_runs",
    """
SELECT run_id, workspace_id, function_id, state, generation, position, memo_bytes, attempt, interruptions, undelivered, mismatches
  FROM live_run
 WHERE state IN ('leased', 'cancelled') AND due_at < clock_timestamp() - make_interval(secs => $grace_seconds)
 ORDER BY due_at LIMIT $runs_max FOR UPDATE SKIP LOCKED""",
)


@dataclass(slots=True)
class Reclaimed:
    """The runs taken back, and what the engine should be told."""

    run_ids: list[UUID] = field(default_factory=list)
    has_due_runs: bool = False
    owes_promotion: bool = False
    near_timer_seconds: float | None = None


async def reclaim_leases(conn: Connection) -> Reclaimed:
    """Take back a group of runs whose leases have ended."""
    rows = await conn.fetch(LOCK_EXPIRED_RUNS, grace_seconds=GRACE_SECONDS, runs_max=RECLAIMED_PER_GROUP_MAX)
    if not rows:
        return Reclaimed()
    runs = [LiveRun(**dict(row)) for row in rows]
    configs = await read_function_configs(conn, {run.function_id for run in runs})
    outcome = Interrupted("lease_lost")
    decided: list[Decided] = []
    for run in runs:
        if run.state == "cancelled":
            decided.append(Decided(run, outcome, None, {}))
            continue
        transition = decide(run, configs[run.function_id], NOTHING_RECORDED, outcome, jitter=0.0)
        assert isinstance(transition, Transition)
        decided.append(Decided(run, outcome, transition, {}))
    written = await write_transitions(conn, decided, lease_seconds=0)
    has_due_runs, owes_promotion = await release_slots(conn, written.left_lease)
    crash_point("reclaim_before_commit")
    return Reclaimed(
        [run.run_id for run in runs],
        written.has_due_runs or has_due_runs,
        owes_promotion,
        written.near_timer_seconds,
    )
