"""Applies the plain reports of a group in ONE statement: steps that succeeded at once, of runs with nothing open, perhaps with the end.

That is nearly every report, so it has a way of its own: one round trip, no transaction around it, nothing read first. What is plain is
decided twice: here by the report's ops, and in the statement by the run's row. Whatever is not is left untouched for
`apply_outcomes`, whose rules (`core.decide`) this file repeats for the plain case; a test compares what both write.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

import asyncpg
from msgspec import Raw

from engine.core.outcome import Reported
from engine.core.run import MEMO_BYTES_MAX
from engine.store.apply_outcomes import RunReport
from engine.store.database import Database
from engine.store.sql import Connection, Sql
from protocol.calls import MemoEntry
from protocol.limits import MEMO_ENTRIES_MAX
from protocol.ops import Complete, Step
from protocol.requests import EntryAnswer

# The rows are locked before anything is written, and everything joins on what was locked: a row that another transaction changed
# since this statement began is looked at anew under its lock (EvalPlanQual), and all that follows uses those values. The conditions are
# a column and no filter, because the planner would think that they leave one row, and would scan all steps for each.
# A lease is renewed only when a third of it is gone: an unchanged due_at keeps the update off the indexes.
APPLY_PLAIN_STEPS = Sql(
    "apply_plain_steps",
    """
WITH locked AS MATERIALIZED (
  SELECT u.*, r.run_id, r.position, r.memo_bytes, r.attempt, r.interruptions, r.undelivered, r.mismatches, r.engine_id, r.leased_at,
         r.due_at, extract(epoch FROM r.due_at - clock_timestamp())::float8 AS left_seconds,
         r.state = 'leased' AND r.workspace_id = u.workspace_id AND r.generation = u.generation AND r.position = u.known
           AND NOT r.has_open
           AND (u.output IS NULL OR coalesce(cardinality(r.limit_key_ids), 0) = 0)
           AND (u.steps = 0 OR (r.position + u.steps <= $entries_max AND r.memo_bytes::bigint + u.bytes <= $bytes_max)) AS is_plain
    FROM unnest($run_ids::uuid[], $workspace_ids::int[], $generations::bigint[], $known::int[], $steps::int[], $bytes::bigint[],
                $outputs::text[])
         WITH ORDINALITY AS u (reported_id, workspace_id, generation, known, steps, bytes, output, place)
    JOIN live_run AS r ON r.run_id = u.reported_id
     FOR UPDATE OF r SKIP LOCKED
), plain AS MATERIALIZED (
  SELECT * FROM locked WHERE is_plain
), remembered AS (
  INSERT INTO step (run_id, step_id, position, kind, data, seen, generation, started_at, duration_seconds)
  SELECT plain.run_id, s.step_id, plain.position + s.number, 'step', s.data, s.seen, plain.generation, s.started_at, s.duration
    FROM unnest($places::int[], $numbers::int[], $step_ids::text[], $data::text[], $seen::int[], $started_at::timestamptz[],
                $durations::float8[]) AS s (place, number, step_id, data, seen, started_at, duration)
    JOIN plain ON plain.place = s.place
), stayed AS (
  UPDATE live_run
     SET position = plain.position + plain.steps,
         memo_bytes = plain.memo_bytes + plain.bytes,
         attempt = CASE WHEN plain.steps > 0 THEN 1 ELSE plain.attempt END,
         interruptions = CASE WHEN plain.steps > 0 THEN 0 ELSE plain.interruptions END,
         undelivered = CASE WHEN plain.steps > 0 THEN 0 ELSE plain.undelivered END,
         mismatches = CASE WHEN plain.steps > 0 THEN 0 ELSE plain.mismatches END,
         due_at = CASE WHEN plain.left_seconds > $lease_seconds * 2 / 3 THEN plain.due_at
                       ELSE clock_timestamp() + make_interval(secs => $lease_seconds) END
    FROM plain WHERE live_run.run_id = plain.run_id AND plain.output IS NULL
), gone AS (
  DELETE FROM live_run USING plain WHERE live_run.run_id = plain.run_id AND plain.output IS NOT NULL
), forgotten AS (
  DELETE FROM taken_event USING plain WHERE taken_event.run_id = plain.run_id AND plain.output IS NOT NULL
), invoked AS (
  INSERT INTO invocation (run_id, generation, engine_id, attempt, leased_at, outcome)
  SELECT run_id, generation, engine_id, attempt, leased_at, 'completed' FROM plain WHERE output IS NOT NULL
  ON CONFLICT DO NOTHING
), ended AS (
  INSERT INTO run_end (run_id, status, output, generation)
  SELECT run_id, 'completed', output, generation FROM plain WHERE output IS NOT NULL
)
SELECT place, left_seconds FROM plain""",
)


@dataclass(slots=True)
class PlainReports:
    """Plain reports of different runs as the columns of the statement."""

    reports: list[RunReport] = field(default_factory=list)
    answered: list[list[MemoEntry]] = field(default_factory=list)
    run_ids: list[UUID] = field(default_factory=list)
    workspace_ids: list[int] = field(default_factory=list)
    generations: list[int] = field(default_factory=list)
    known: list[int] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)
    outputs: list[str | None] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    step_ids: list[str] = field(default_factory=list)
    data: list[str] = field(default_factory=list)
    seen: list[int] = field(default_factory=list)
    started_at: list[datetime] = field(default_factory=list)
    durations: list[float] = field(default_factory=list)

    def take(self, report: RunReport) -> bool:
        """Add the report if its ops are plain; whether they are."""
        outcome = report.outcome
        if type(outcome) is not Reported:
            return False
        ops = outcome.ops
        output: str | None = None
        count = len(ops)
        if outcome.ends:
            # An end without a result is a pause or a failure.
            if not ops or type(ops[-1]) is not Complete:
                return False
            output = bytes(ops[-1].output).decode()
            count -= 1
        for op in ops[:count]:
            if type(op) is not Step or op.attempt != 1 or type(op.data) is not Raw:
                return False
        if count > 1 and len({op.id for op in ops[:count]}) < count:  # type: ignore[union-attr]  # they are steps
            return False
        place = len(self.reports) + 1
        size_bytes = 0
        entries: list[MemoEntry] = []
        for number in range(1, count + 1):
            op = ops[number - 1]
            assert type(op) is Step and type(op.data) is Raw
            data = bytes(op.data).decode()
            size_bytes += len(data) + len(op.id)
            self.places.append(place)
            self.numbers.append(number)
            self.step_ids.append(op.id)
            self.data.append(data)
            self.seen.append(op.seen)
            self.started_at.append(op.started_at)
            self.durations.append(op.duration_seconds)
            entries.append(MemoEntry(op.id, "step", outcome.known + number))
        self.reports.append(report)
        self.answered.append(entries)
        self.run_ids.append(report.run_id)
        self.workspace_ids.append(report.workspace_id)
        self.generations.append(report.generation)
        self.known.append(outcome.known)
        self.steps.append(count)
        self.bytes.append(size_bytes)
        self.outputs.append(output)
        return True


async def apply_plain_steps(database: Database, plain: PlainReports, lease_seconds: float) -> dict[UUID, EntryAnswer]:
    """Apply what can be applied this way; the answers by run. A report without one changed nothing and wants `apply_outcomes`."""
    try:
        return await database.write_once(_apply, plain, lease_seconds)
    except asyncpg.UniqueViolationError:
        # One of them has a step that its run remembers already. Nothing of the group was written.
        return {}


async def _apply(conn: Connection, plain: PlainReports, lease_seconds: float) -> dict[UUID, EntryAnswer]:
    rows = await conn.fetch(
        APPLY_PLAIN_STEPS,
        run_ids=plain.run_ids,
        workspace_ids=plain.workspace_ids,
        generations=plain.generations,
        known=plain.known,
        steps=plain.steps,
        bytes=plain.bytes,
        outputs=plain.outputs,
        places=plain.places,
        numbers=plain.numbers,
        step_ids=plain.step_ids,
        data=plain.data,
        seen=plain.seen,
        started_at=plain.started_at,
        durations=plain.durations,
        entries_max=MEMO_ENTRIES_MAX,
        bytes_max=MEMO_BYTES_MAX,
        lease_seconds=lease_seconds,
    )
    answers: dict[UUID, EntryAnswer] = {}
    for place, left_seconds in rows:
        report = plain.reports[place - 1]
        # What the statement leaves it with: renewed once a third is gone.
        left = left_seconds if left_seconds > lease_seconds * 2 / 3 else lease_seconds
        answers[report.run_id] = EntryAnswer(
            str(report.run_id), report.generation, "ok", lease_seconds=left, resolved=plain.answered[place - 1]
        )
    return answers


def ended_runs(reports: Sequence[RunReport], answers: dict[UUID, EntryAnswer]) -> list[UUID]:
    """The runs that ended with these plain answers."""
    return [
        report.run_id
        for report in reports
        if report.run_id in answers and isinstance(report.outcome, Reported) and report.outcome.ends
    ]
