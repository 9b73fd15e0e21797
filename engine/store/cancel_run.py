"""Cancels a run: it has ended at once. An invocation under way hears of it at its next checkpoint, and keeps its slot till then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from engine.store.release_slots import release_slots
from engine.store.sql import Connection, Sql

LOCK_RUN_TO_CANCEL = Sql(
    "lock_run_to_cancel",
    "SELECT state, generation FROM live_run WHERE run_id = $run_id AND workspace_id = $workspace_id FOR UPDATE",
)
READ_END = Sql(
    "read_end",
    """
SELECT run_end.status FROM run LEFT JOIN run_end USING (run_id)
 WHERE run.run_id = $run_id AND run.workspace_id = $workspace_id""",
)
CANCEL_RUN = Sql(
    "cancel_run",
    """
WITH waits AS (
  DELETE FROM wait WHERE run_id = $run_id
), retries AS (
  DELETE FROM step_retry WHERE run_id = $run_id
), taken AS (
  DELETE FROM taken_event WHERE run_id = $run_id
), lame AS (
  UPDATE live_run SET state = 'cancelled' WHERE run_id = $run_id AND $is_leased
), gone AS (
  DELETE FROM live_run WHERE run_id = $run_id AND NOT $is_leased
)
INSERT INTO run_end (run_id, status, generation) VALUES ($run_id, 'cancelled', $generation)""",
)


@dataclass(frozen=True, slots=True)
class CancelResult:
    """What became of the request; `ended_status` is how the run had ended before it."""

    status: Literal["cancelled", "already_ended", "not_found"]
    ended_status: str | None = None
    has_due_runs: bool = False
    owes_promotion: bool = False


async def cancel_run(conn: Connection, workspace_id: int, run_id: UUID) -> CancelResult:
    """Cancel a run of this workspace. Cancelling it again, or after its end, changes nothing."""
    row = await conn.fetchrow(LOCK_RUN_TO_CANCEL, run_id=run_id, workspace_id=workspace_id)
    if row is None or row["state"] == "cancelled":
        end = await conn.fetchrow(READ_END, run_id=run_id, workspace_id=workspace_id)
        if end is None:
            return CancelResult("not_found")
        return CancelResult("already_ended", end["status"])
    is_leased = row["state"] == "leased"
    await conn.execute(CANCEL_RUN, run_id=run_id, is_leased=is_leased, generation=row["generation"])
    if is_leased:
        conn.run_news.append(run_id)
    has_due_runs, owes_promotion = (False, False) if is_leased else await release_slots(conn, [run_id])
    return CancelResult("cancelled", None, has_due_runs, owes_promotion)
