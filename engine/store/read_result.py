"""Reads where a run stands and what came out of it: the answer to those who started it."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from engine.store.run_status import ENDED_STATUSES, run_status
from engine.store.sql import Connection, Sql
from protocol.requests import RunStatus

READ_RESULT = Sql(
    "read_result",
    """
SELECT live_run.state, run_end.status, run_end.output, run_end.error
  FROM run LEFT JOIN live_run USING (run_id) LEFT JOIN run_end USING (run_id)
 WHERE run.run_id = $run_id AND run.workspace_id = $workspace_id""",
)


@dataclass(frozen=True, slots=True)
class RunResult:
    """`output` and `error` are JSON texts; one of them is there when the run completed or failed."""

    status: RunStatus
    output: str | None = None
    error: str | None = None

    @property
    def has_ended(self) -> bool:
        return self.status in ENDED_STATUSES


async def read_result(conn: Connection, workspace_id: int, run_id: UUID) -> RunResult | None:
    """Where the run stands; None when the workspace has no such run."""
    row = await conn.fetchrow(READ_RESULT, run_id=run_id, workspace_id=workspace_id)
    if row is None:
        return None
    return RunResult(run_status(row["state"], row["status"]), row["output"], row["error"])
