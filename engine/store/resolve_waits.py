"""Ends waits of runs whose rows the caller has locked: memo entries in, waits out, and the run wakes if it was only waiting.

Called by events, timers and lookback. It never decides whether a wait may end; the caller did, under the run's lock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from engine.core.run import StepKind
from engine.store.sql import Connection, Sql

DELETE_WAITS = Sql(
    "delete_waits",
    """
DELETE FROM wait USING unnest($run_ids::uuid[], $step_ids::text[]) AS gone (run_id, step_id)
 WHERE wait.run_id = gone.run_id AND wait.step_id = gone.step_id""",
)

# A run that is delayed because its function failed keeps its delay; one that only waits for a step's retry may go on with the event.
RESOLVE_WAITS = Sql(
    "resolve_waits",
    """
WITH resolved AS (
  SELECT *, row_number() OVER (PARTITION BY run_id ORDER BY ordinal) AS place
    FROM unnest($run_ids::uuid[], $step_ids::text[], $kinds::text[], $data::text[], $event_ids::uuid[],
                $planned_at::timestamptz[])
         WITH ORDINALITY AS u (run_id, step_id, kind, data, event_id, planned_at, ordinal)
), counted AS (
  SELECT run_id, count(*)::int AS entries, sum(coalesce(length(data), 0) + length(step_id))::int AS bytes
    FROM resolved GROUP BY run_id
), woken AS (
  UPDATE live_run
     SET position = live_run.position + counted.entries,
         memo_bytes = live_run.memo_bytes + counted.bytes,
         state = CASE WHEN wakes THEN 'ready' ELSE live_run.state END,
         due_at = CASE WHEN wakes THEN NULL ELSE live_run.due_at END,
         order_at = CASE WHEN wakes THEN clock_timestamp() ELSE live_run.order_at END
    FROM counted, LATERAL (SELECT before.state = 'waiting' OR (before.state = 'delayed' AND before.attempt = 1
                                  AND before.interruptions = 0) AS wakes
                             FROM live_run AS before WHERE before.run_id = counted.run_id) AS state
   WHERE live_run.run_id = counted.run_id
  RETURNING live_run.run_id, live_run.position - counted.entries AS position_before, live_run.generation, wakes,
            live_run.state = 'leased' AS is_leased
), written AS (
  INSERT INTO step (run_id, step_id, position, kind, data, event_id, generation, planned_at)
  SELECT resolved.run_id, resolved.step_id, woken.position_before + resolved.place, resolved.kind, resolved.data,
         resolved.event_id, woken.generation, resolved.planned_at
    FROM resolved JOIN woken USING (run_id)
), taken AS (
  INSERT INTO taken_event (run_id, event_id)
  SELECT run_id, event_id FROM resolved WHERE event_id IS NOT NULL
  ON CONFLICT DO NOTHING
)
SELECT run_id, wakes FROM woken WHERE wakes OR is_leased""",
)


@dataclass(frozen=True, slots=True)
class ResolvedWait:
    """A wait that has ended: `data` is the JSON that its step gives."""

    run_id: UUID
    step_id: str
    kind: StepKind
    data: str
    event_id: UUID | None
    planned_at: object


async def resolve_waits(conn: Connection, resolved: Sequence[ResolvedWait]) -> list[UUID]:
    """Write the memo entries of these waits and delete them; the runs that became ready."""
    if not resolved:
        return []
    run_ids = [wait.run_id for wait in resolved]
    step_ids = [wait.step_id for wait in resolved]
    await conn.execute(DELETE_WAITS, run_ids=run_ids, step_ids=step_ids)
    rows = await conn.fetch(
        RESOLVE_WAITS,
        run_ids=run_ids,
        step_ids=step_ids,
        kinds=[wait.kind for wait in resolved],
        data=[wait.data for wait in resolved],
        event_ids=[wait.event_id for wait in resolved],
        planned_at=[wait.planned_at for wait in resolved],
    )
    conn.run_news.extend(row["run_id"] for row in rows if not row["wakes"])
    return [row["run_id"] for row in rows if row["wakes"]]
