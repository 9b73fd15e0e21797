"""Reads what the store knows of the steps that reports name, and of what is open in their runs: the facts that deciding needs.

The caller has locked the runs. One statement, since it stands in the way of every checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from uuid import UUID

from engine.core.outcome import Reported
from engine.core.run import PendingRetry, Recorded, RecordedStep
from engine.store.sql import Connection, Sql
from protocol.ops import Abandon, Op, SendEvents, Sleep, Step, StepError, WaitForEvent

if TYPE_CHECKING:
    from engine.store.apply_outcomes import RunReport

READ_RECORDED = Sql(
    "read_recorded",
    """
SELECT 'step' AS what, step.run_id, step.step_id, step.kind, step.position AS number, step.is_abandoned AS flag, 0::float8 AS seconds
  FROM unnest($run_ids::uuid[], $step_ids::text[]) AS u (run_id, step_id) JOIN step USING (run_id, step_id)
UNION ALL
SELECT 'attempt', a.run_id, a.step_id, '', a.attempt, false, 0
  FROM unnest($failed_run_ids::uuid[], $failed_step_ids::text[], $failed_attempts::int[]) AS u (run_id, step_id, attempt)
  JOIN step_attempt AS a USING (run_id, step_id, attempt)
UNION ALL
SELECT 'wait', wait.run_id, wait.step_id, wait.kind, 0, false, 0
  FROM wait WHERE wait.run_id = ANY($open_run_ids::uuid[])
UNION ALL
SELECT 'retry', r.run_id, r.step_id, '', r.attempt, false,
       greatest(extract(epoch FROM r.due_at - clock_timestamp()), 0)::float8
  FROM step_retry AS r WHERE r.run_id = ANY($open_run_ids::uuid[])""",
)


async def read_recorded(conn: Connection, reports: Sequence[RunReport]) -> dict[UUID, Recorded]:
    """For each report's run: the memo entries of the ids that it names, its open waits and retries."""
    named: list[tuple[UUID, str]] = []
    failed: list[tuple[UUID, str, int]] = []
    for report in reports:
        if isinstance(report.outcome, Reported):
            for op in report.outcome.ops:
                named += [(report.run_id, step_id) for step_id in _ids(op)]
                if isinstance(op, StepError):
                    failed.append((report.run_id, op.id, op.attempt))
    rows = await conn.fetch(
        READ_RECORDED,
        run_ids=[run_id for run_id, _ in named],
        step_ids=[step_id for _, step_id in named],
        failed_run_ids=[run_id for run_id, _, _ in failed],
        failed_step_ids=[step_id for _, step_id, _ in failed],
        failed_attempts=[attempt for _, _, attempt in failed],
        # A run's first invocation can have nothing open before its first report; asking is cheap all the same.
        open_run_ids=[report.run_id for report in reports],
    )
    recorded = {report.run_id: Recorded({}, {}, {}, frozenset()) for report in reports}
    attempts: dict[UUID, set[tuple[str, int]]] = {}
    for row in rows:
        into = recorded[row["run_id"]]
        match row["what"]:
            case "step":
                into.steps[row["step_id"]] = RecordedStep(row["kind"], row["number"], row["flag"])
            case "wait":
                into.waits[row["step_id"]] = row["kind"]
            case "retry":
                into.retries[row["step_id"]] = PendingRetry(row["number"], row["seconds"])
            case "attempt":
                attempts.setdefault(row["run_id"], set()).add((row["step_id"], row["number"]))
    for run_id, its_attempts in attempts.items():
        known = recorded[run_id]
        recorded[run_id] = Recorded(known.steps, known.waits, known.retries, frozenset(its_attempts))
    return recorded


def _ids(op: Op) -> list[str]:
    match op:
        case Step() | StepError() | Sleep() | WaitForEvent() | SendEvents():
            return [op.id]
        case Abandon(ids):
            return ids
        case _:
            return []
