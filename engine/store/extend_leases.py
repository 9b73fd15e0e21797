"""Keeps this engine's leases alive while their calls are open, and says which of them are no longer its own."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from engine.store.sql import Connection, Sql

EXTEND_LEASES = Sql(
    "extend_leases",
    """
UPDATE live_run SET due_at = clock_timestamp() + make_interval(secs => $lease_seconds)
 WHERE run_id IN (SELECT live_run.run_id FROM live_run
                    JOIN unnest($run_ids::uuid[], $generations::int[]) AS u (run_id, generation)
                         ON live_run.run_id = u.run_id AND live_run.generation = u.generation
                   WHERE live_run.state IN ('leased', 'cancelled')
                   ORDER BY live_run.run_id FOR UPDATE OF live_run)
RETURNING run_id""",
)
# Leases of this engine that it does not know: a claim whose commit it never heard of. Older than a claim and its hand-over may be
# (the dispatcher's limit), or a run would be given back while it is being handed over.
FIND_MY_LEASES = Sql(
    "find_my_leases",
    """
SELECT run_id, workspace_id, generation FROM live_run
 WHERE state = 'leased' AND engine_id = $engine_id AND leased_at < clock_timestamp() - interval '16 seconds'""",
)


async def extend_leases(conn: Connection, held: Sequence[tuple[UUID, int]], lease_seconds: float) -> set[UUID]:
    """Renew the leases `held` (run, generation); those that were renewed. The others belong to nobody here any more."""
    if not held:
        return set()
    rows = await conn.fetch(
        EXTEND_LEASES,
        run_ids=[run_id for run_id, _ in held],
        generations=[generation for _, generation in held],
        lease_seconds=lease_seconds,
    )
    return {row["run_id"] for row in rows}


async def find_my_leases(conn: Connection, engine_id: UUID) -> list[tuple[UUID, int, int]]:
    """The (run, workspace, generation) of every lease of this engine older than a hand-over takes."""
    rows = await conn.fetch(FIND_MY_LEASES, engine_id=engine_id)
    return [(row["run_id"], row["workspace_id"], row["generation"]) for row in rows]
