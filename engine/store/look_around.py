"""One look at everything that could be waiting for somebody: what an idle engine asks, in one round trip."""

from __future__ import annotations

from dataclasses import dataclass

from engine.store.reclaim_leases import GRACE_SECONDS
from engine.store.sql import Connection, Sql

# Each part is one step along a partial index.
LOOK_AROUND = Sql(
    "look_around",
    """
SELECT EXISTS (SELECT FROM live_run WHERE state = 'ready') AS has_due_runs,
       EXISTS (SELECT FROM live_run WHERE state IN ('leased', 'cancelled')
                  AND due_at < clock_timestamp() - make_interval(secs => $grace_seconds)) AS has_ended_leases,
       EXISTS (SELECT FROM wait WHERE NOT is_pending AND deadline_at < clock_timestamp() + make_interval(secs => $horizon_seconds))
         OR EXISTS (SELECT FROM live_run WHERE state = 'delayed'
                       AND due_at < clock_timestamp() + make_interval(secs => $horizon_seconds)) AS has_near_timers,
       EXISTS (SELECT FROM promotion) AS owes_promotion,
       EXISTS (SELECT FROM event_shape WHERE NOT is_ready) OR EXISTS (SELECT FROM wait WHERE is_pending) AS owes_backfill""",
)


@dataclass(frozen=True, slots=True)
class Seen:
    """What there is to do."""

    has_due_runs: bool
    has_ended_leases: bool
    has_near_timers: bool
    owes_promotion: bool
    owes_backfill: bool


async def look_around(conn: Connection, horizon_seconds: float) -> Seen:
    row = await conn.fetchrow(LOOK_AROUND, grace_seconds=GRACE_SECONDS, horizon_seconds=horizon_seconds)
    assert row is not None
    return Seen(**dict(row))
