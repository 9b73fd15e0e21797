"""Says how long leases still are that others extend: those of runs whose app renews them itself."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from engine.store.sql import Connection, Sql

READ_LEASES = Sql(
    "read_leases",
    """
SELECT live_run.run_id, extract(epoch FROM live_run.due_at - clock_timestamp())::float8 AS seconds_left
  FROM live_run
  JOIN unnest($run_ids::uuid[], $generations::int[]) AS u (run_id, generation)
       ON live_run.run_id = u.run_id AND live_run.generation = u.generation
 WHERE live_run.state IN ('leased', 'cancelled')""",
)


async def read_leases(conn: Connection, held: Sequence[tuple[UUID, int]]) -> dict[UUID, float]:
    """Seconds until each of the leases `held` (run, generation) ends, negative when it has and nobody took the run back yet. Those
    that are missing belong to nobody here any more.
    """
    if not held:
        return {}
    rows = await conn.fetch(
        READ_LEASES, run_ids=[run_id for run_id, _ in held], generations=[generation for _, generation in held]
    )
    return {row["run_id"]: row["seconds_left"] for row in rows}
