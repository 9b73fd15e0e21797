"""Holds lanes whose app can not be reached, each time a little longer, and lets them go when a call succeeds."""

from __future__ import annotations

from engine.core.transition import LaneHold
from engine.store.sql import Connection, Sql

# 0.25 s, doubling, up to 30 s: a restarting app is found again at once, a dead one costs a call a minute or two.
HOLD_LANES = Sql(
    "hold_lanes",
    """
INSERT INTO lane_hold (function_id, held_until, cause, detail, failures)
SELECT function_id, clock_timestamp() + make_interval(secs => coalesce($seconds::float8, 0.25)), $cause, $detail, 1
  FROM function
 WHERE function_id = $function_id OR ($whole_app AND workspace_id = $workspace_id AND removed_at IS NULL)
 ORDER BY function_id
ON CONFLICT (function_id) DO UPDATE
   SET failures = CASE WHEN lane_hold.held_until < clock_timestamp() THEN lane_hold.failures + 1 ELSE lane_hold.failures END,
       held_until = greatest(lane_hold.held_until, clock_timestamp() + make_interval(secs => coalesce($seconds::float8,
                      least(0.25 * power(2, least(lane_hold.failures, 10)), 30)))),
       detail = excluded.detail
 WHERE lane_hold.cause <> 'function_removed'""",
)
# In the order in which holds are taken.
FREE_LANES = Sql(
    "free_lanes",
    """
DELETE FROM lane_hold WHERE function_id IN (
  SELECT lane_hold.function_id FROM lane_hold JOIN function USING (function_id)
   WHERE function.workspace_id = $workspace_id AND lane_hold.cause = ANY($causes::text[])
   ORDER BY lane_hold.function_id FOR UPDATE OF lane_hold)""",
)


async def hold_lanes(conn: Connection, workspace_id: int, function_id: int, hold: LaneHold) -> None:
    """Claim nothing from this lane, or from every lane of its app, for a while."""
    await conn.execute(
        HOLD_LANES,
        workspace_id=workspace_id,
        function_id=function_id,
        whole_app=hold.whole_app,
        seconds=hold.seconds,
        cause=hold.cause,
        detail=hold.detail[:500],
    )


async def free_lanes(conn: Connection, workspace_id: int, *, has_new_manifest: bool = False) -> bool:
    """Let the lanes of an app go again, whose call got through; whether any was held.

    A function that the app does not know keeps its hold until a new manifest: that another one was reached says nothing of it.
    """
    causes = ["app_unreachable", "unknown_function"] if has_new_manifest else ["app_unreachable"]
    return await conn.execute(FREE_LANES, workspace_id=workspace_id, causes=causes) > 0
