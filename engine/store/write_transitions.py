"""Writes decided transitions of locked runs: each table once for the whole group, nothing that is empty.

It decides nothing. Slots and events are the caller's, since they lock more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

from engine.core.decide import memo_bytes
from engine.core.outcome import Outcome
from engine.core.run import LiveRun
from engine.core.transition import Delayed, Ended, LaneHold, Parked, Ready, Stay, Transition, Waiting
from engine.store.hold_lanes import hold_lanes
from engine.store.register_waits import PreparedWait
from engine.store.sql import Connection, Sql

INSERT_STEPS = Sql(
    "insert_steps",
    """
INSERT INTO step (run_id, step_id, position, kind, data, error, is_abandoned, event_id, attempt, seen, generation,
                  started_at, duration_seconds)
SELECT * FROM unnest($run_ids::uuid[], $step_ids::text[], $positions::int[], $kinds::text[], $data::text[], $errors::text[],
                     $abandoned::bool[], $event_ids::uuid[], $attempts::int[], $seen::int[], $generations::int[],
                     $started_at::timestamptz[], $durations::float8[])""",
)
INSERT_TAKEN_EVENTS = Sql(
    "insert_taken_events",
    "INSERT INTO taken_event (run_id, event_id) SELECT * FROM unnest($run_ids::uuid[], $event_ids::uuid[]) ON CONFLICT DO NOTHING",
)
INSERT_WAITS = Sql(
    "insert_waits",
    """
INSERT INTO wait (run_id, step_id, kind, deadline_at, is_pending, event_name, match, condition, shape_id, match_hash, has_lookback)
SELECT run_id, step_id, kind, coalesce(until, clock_timestamp() + make_interval(secs => seconds)), is_pending, event_name, match,
       condition, shape_id, match_hash, has_lookback
  FROM unnest($run_ids::uuid[], $step_ids::text[], $kinds::text[], $seconds::float8[], $untils::timestamptz[], $pending::bool[],
              $event_names::text[], $matches::text[], $conditions::text[], $shape_ids::int[], $match_hashes::bytea[],
              $lookbacks::bool[])
       WITH ORDINALITY AS u (run_id, step_id, kind, seconds, until, is_pending, event_name, match, condition, shape_id,
                             match_hash, has_lookback, ordinal)
 ORDER BY ordinal
RETURNING greatest(extract(epoch FROM deadline_at - clock_timestamp()), 0)::float8 AS in_seconds""",
)
DROP_WAITS = Sql(
    "drop_waits",
    """
DELETE FROM wait USING unnest($run_ids::uuid[], $step_ids::text[]) AS u (run_id, step_id)
 WHERE wait.run_id = u.run_id AND wait.step_id = u.step_id""",
)
INSERT_FAILED_ATTEMPTS = Sql(
    "insert_failed_attempts",
    """
INSERT INTO step_attempt (run_id, step_id, attempt, error, generation, started_at, duration_seconds)
SELECT * FROM unnest($run_ids::uuid[], $step_ids::text[], $attempts::int[], $errors::text[], $generations::int[],
                     $started_at::timestamptz[], $durations::float8[])
ON CONFLICT DO NOTHING""",
)
PUT_RETRIES = Sql(
    "put_retries",
    """
INSERT INTO step_retry (run_id, step_id, attempt, due_at)
SELECT run_id, step_id, attempt, clock_timestamp() + make_interval(secs => seconds)
  FROM unnest($run_ids::uuid[], $step_ids::text[], $attempts::int[], $seconds::float8[]) AS u (run_id, step_id, attempt, seconds)
ON CONFLICT (run_id, step_id) DO UPDATE SET attempt = excluded.attempt, due_at = excluded.due_at""",
)
DROP_RETRIES = Sql(
    "drop_retries",
    """
DELETE FROM step_retry USING unnest($run_ids::uuid[], $step_ids::text[]) AS u (run_id, step_id)
 WHERE step_retry.run_id = u.run_id AND step_retry.step_id = u.step_id""",
)
# The lease is renewed only when a third of it is gone: an unchanged due_at keeps the update off the indexes.
UPDATE_LEASED_RUNS = Sql(
    "update_leased_runs",
    """
UPDATE live_run
   SET position = u.position, memo_bytes = u.memo_bytes, attempt = u.attempt, interruptions = u.interruptions,
       undelivered = u.undelivered, mismatches = u.mismatches, has_open = coalesce(u.has_open, live_run.has_open),
       due_at = CASE WHEN live_run.due_at > clock_timestamp() + make_interval(secs => $lease_seconds * 2 / 3) THEN live_run.due_at
                     ELSE clock_timestamp() + make_interval(secs => $lease_seconds) END
  FROM unnest($run_ids::uuid[], $positions::int[], $memo_bytes::int[], $attempts::int[], $interruptions::int[],
              $undelivered::int[], $mismatches::int[], $has_open::bool[])
       AS u (run_id, position, memo_bytes, attempt, interruptions, undelivered, mismatches, has_open)
 WHERE live_run.run_id = u.run_id""",
)
UPDATE_LEFT_RUNS = Sql(
    "update_left_runs",
    """
UPDATE live_run
   SET state = u.state, due_at = clock_timestamp() + make_interval(secs => u.delay_seconds), parked_for = u.parked_for,
       order_at = clock_timestamp(), engine_id = NULL, leased_at = NULL,
       position = u.position, memo_bytes = u.memo_bytes, attempt = u.attempt, interruptions = u.interruptions,
       undelivered = u.undelivered, mismatches = u.mismatches, has_open = coalesce(u.has_open, live_run.has_open)
  FROM unnest($run_ids::uuid[], $states::text[], $delays::float8[], $parked_for::text[], $positions::int[], $memo_bytes::int[],
              $attempts::int[], $interruptions::int[], $undelivered::int[], $mismatches::int[], $has_open::bool[])
       AS u (run_id, state, delay_seconds, parked_for, position, memo_bytes, attempt, interruptions, undelivered, mismatches,
             has_open)
 WHERE live_run.run_id = u.run_id""",
)
END_RUNS = Sql(
    "end_runs",
    """
WITH gone AS (
  DELETE FROM live_run WHERE run_id = ANY($run_ids::uuid[])
), waits AS (
  DELETE FROM wait WHERE run_id = ANY($run_ids::uuid[])
), retries AS (
  DELETE FROM step_retry WHERE run_id = ANY($run_ids::uuid[])
), taken AS (
  DELETE FROM taken_event WHERE run_id = ANY($run_ids::uuid[])
)
INSERT INTO run_end (run_id, status, output, error, generation)
SELECT * FROM unnest($run_ids::uuid[], $statuses::text[], $outputs::text[], $errors::text[], $generations::int[])""",
)
FORGET_CANCELLED_RUNS = Sql(
    "forget_cancelled_runs", "DELETE FROM live_run WHERE run_id = ANY($run_ids::uuid[]) AND state = 'cancelled'"
)
# Before the run's row changes: when it was leased, and by whom, is read from there.
INSERT_INVOCATIONS = Sql(
    "insert_invocations",
    """
INSERT INTO invocation (run_id, generation, engine_id, attempt, leased_at, outcome, detail)
SELECT live_run.run_id, live_run.generation, live_run.engine_id, live_run.attempt, live_run.leased_at, u.outcome, u.detail
  FROM unnest($run_ids::uuid[], $outcomes::text[], $details::text[]) AS u (run_id, outcome, detail)
  JOIN live_run USING (run_id)
ON CONFLICT DO NOTHING""",
)


@dataclass(frozen=True, slots=True)
class Decided:
    """A locked run with what was decided; no transition when the run was cancelled and its invocation has ended now."""

    run: LiveRun
    outcome: Outcome
    transition: Transition | None
    prepared_waits: dict[str, PreparedWait]


@dataclass(slots=True)
class Written:
    """What the writing led to."""

    has_due_runs: bool = False
    near_timer_seconds: float | None = None
    left_lease: list[UUID] = field(default_factory=list)
    ended_runs: list[UUID] = field(default_factory=list)


async def write_transitions(conn: Connection, decided: Sequence[Decided], lease_seconds: float) -> Written:
    """Write them all; runs that leave their lease keep their slots until the caller releases them."""
    written = Written()
    transitions = [(item, item.transition) for item in decided if item.transition is not None]
    await _write_memo(conn, transitions)
    await _write_waits(conn, transitions, written)
    await _write_retries(conn, transitions, written)
    await _write_invocations(conn, decided)
    await _write_holds(conn, transitions)
    await _write_runs(conn, transitions, lease_seconds, written)
    cancelled = [item.run.run_id for item in decided if item.transition is None]
    if cancelled:
        await conn.execute(FORGET_CANCELLED_RUNS, run_ids=cancelled)
        written.left_lease += cancelled
    return written


Transitions = Sequence[tuple[Decided, Transition]]


async def _write_memo(conn: Connection, transitions: Transitions) -> None:
    memo = [(item.run, place, entry) for item, transition in transitions for place, entry in enumerate(transition.memo, 1)]
    if not memo:
        return
    await conn.execute(
        INSERT_STEPS,
        run_ids=[run.run_id for run, _, _ in memo],
        step_ids=[entry.step_id for _, _, entry in memo],
        positions=[run.position + place for run, place, _ in memo],
        kinds=[entry.kind for _, _, entry in memo],
        data=[entry.data for _, _, entry in memo],
        errors=[entry.error for _, _, entry in memo],
        abandoned=[entry.is_abandoned for _, _, entry in memo],
        event_ids=[entry.event_id for _, _, entry in memo],
        attempts=[entry.attempt for _, _, entry in memo],
        seen=[entry.seen for _, _, entry in memo],
        generations=[run.generation for run, _, _ in memo],
        started_at=[entry.started_at for _, _, entry in memo],
        durations=[entry.duration_seconds for _, _, entry in memo],
    )
    taken = [(run.run_id, entry.event_id) for run, _, entry in memo if entry.event_id is not None]
    if taken:
        await conn.execute(
            INSERT_TAKEN_EVENTS, run_ids=[run_id for run_id, _ in taken], event_ids=[event_id for _, event_id in taken]
        )


async def _write_waits(conn: Connection, transitions: Transitions, written: Written) -> None:
    waits = [(item, wait) for item, transition in transitions for wait in transition.waits]
    if waits:
        prepared = [item.prepared_waits.get(wait.step_id) for item, wait in waits]
        rows = await conn.fetch(
            INSERT_WAITS,
            run_ids=[item.run.run_id for item, _ in waits],
            step_ids=[wait.step_id for _, wait in waits],
            kinds=[wait.kind for _, wait in waits],
            seconds=[wait.seconds for _, wait in waits],
            untils=[wait.until for _, wait in waits],
            pending=[place.is_pending if place else False for place in prepared],
            event_names=[wait.event_name for _, wait in waits],
            matches=[wait.match for _, wait in waits],
            conditions=[wait.condition for _, wait in waits],
            shape_ids=[place.shape_id if place else None for place in prepared],
            match_hashes=[place.wanted.match_hash if place else None for place in prepared],
            lookbacks=[wait.has_lookback for _, wait in waits],
        )
        _nearer(written, min(row["in_seconds"] for row in rows))
    dropped = [(item.run.run_id, step_id) for item, transition in transitions for step_id in transition.dropped_waits]
    if dropped:
        await conn.execute(DROP_WAITS, run_ids=[run for run, _ in dropped], step_ids=[step for _, step in dropped])


async def _write_retries(conn: Connection, transitions: Transitions, written: Written) -> None:
    failed = [(item.run, attempt) for item, transition in transitions for attempt in transition.failed_attempts]
    if failed:
        await conn.execute(
            INSERT_FAILED_ATTEMPTS,
            run_ids=[run.run_id for run, _ in failed],
            step_ids=[attempt.step_id for _, attempt in failed],
            attempts=[attempt.attempt for _, attempt in failed],
            errors=[attempt.error for _, attempt in failed],
            generations=[run.generation for run, _ in failed],
            started_at=[attempt.started_at for _, attempt in failed],
            durations=[attempt.duration_seconds for _, attempt in failed],
        )
    retries = [(item.run.run_id, *retry) for item, transition in transitions for retry in transition.retries]
    if retries:
        await conn.execute(
            PUT_RETRIES,
            run_ids=[run_id for run_id, _, _, _ in retries],
            step_ids=[step_id for _, step_id, _, _ in retries],
            attempts=[attempt for _, _, attempt, _ in retries],
            seconds=[seconds for _, _, _, seconds in retries],
        )
    dropped = [(item.run.run_id, step_id) for item, transition in transitions for step_id in transition.dropped_retries]
    if dropped:
        await conn.execute(DROP_RETRIES, run_ids=[run for run, _ in dropped], step_ids=[step for _, step in dropped])


async def _write_invocations(conn: Connection, decided: Sequence[Decided]) -> None:
    ended: list[tuple[UUID, str, str | None]] = []
    for item in decided:
        if item.transition is None:
            ended.append((item.run.run_id, "cancelled", None))
        elif item.transition.invocation_outcome is not None:
            outcome = item.transition.invocation_outcome
            ended.append((item.run.run_id, outcome, item.transition.invocation_detail))
    if ended:
        await conn.execute(
            INSERT_INVOCATIONS,
            run_ids=[run_id for run_id, _, _ in ended],
            outcomes=[outcome for _, outcome, _ in ended],
            details=[detail for _, _, detail in ended],
        )


async def _write_holds(conn: Connection, transitions: Transitions) -> None:
    """Hold each lane once, in one order: the runs of a dead app come back in one group, and two engines hold the same lanes."""
    holds: dict[tuple[int, int, str], LaneHold] = {}
    for item, transition in transitions:
        if (hold := transition.lane_hold) is not None:
            lane = 0 if hold.whole_app else item.run.function_id
            holds[item.run.workspace_id, lane, hold.cause] = hold
    for (workspace_id, function_id, _), hold in sorted(holds.items(), key=lambda held: held[0]):
        await hold_lanes(conn, workspace_id, function_id, hold)


async def _write_runs(conn: Connection, transitions: Transitions, lease_seconds: float, written: Written) -> None:
    staying = [(item, transition) for item, transition in transitions if isinstance(transition.next, Stay)]
    if staying:
        await conn.execute(UPDATE_LEASED_RUNS, lease_seconds=lease_seconds, **_counts(staying))
    ended = [(item.run, transition.next) for item, transition in transitions if isinstance(transition.next, Ended)]
    if ended:
        await conn.execute(
            END_RUNS,
            run_ids=[run.run_id for run, _ in ended],
            statuses=[end.status for _, end in ended],
            outputs=[end.output for _, end in ended],
            errors=[end.error for _, end in ended],
            generations=[run.generation for run, _ in ended],
        )
        written.ended_runs = [run.run_id for run, _ in ended]
    left = [
        (item, transition) for item, transition in transitions if isinstance(transition.next, Ready | Delayed | Waiting | Parked)
    ]
    if left:
        states = [_STATE_WORDS[type(transition.next)] for _, transition in left]
        delays = [t.next.seconds if isinstance(t.next, Delayed) else None for _, t in left]
        await conn.execute(
            UPDATE_LEFT_RUNS,
            states=states,
            delays=delays,
            parked_for=[t.next.cause if isinstance(t.next, Parked) else None for _, t in left],
            **_counts(left),
        )
        written.has_due_runs = "ready" in states
        if near := [seconds for seconds in delays if seconds is not None]:
            _nearer(written, min(near))
    written.left_lease += [item.run.run_id for item, _ in left] + written.ended_runs


_STATE_WORDS: dict[type, str] = {Ready: "ready", Delayed: "delayed", Waiting: "waiting", Parked: "parked"}


def _counts(transitions: Transitions) -> dict[str, list[object]]:
    return {
        "run_ids": [item.run.run_id for item, _ in transitions],
        "positions": [item.run.position + len(transition.memo) for item, transition in transitions],
        "memo_bytes": [item.run.memo_bytes + memo_bytes(transition.memo) for item, transition in transitions],
        "attempts": [transition.counters.attempt for _, transition in transitions],
        "interruptions": [transition.counters.interruptions for _, transition in transitions],
        "undelivered": [transition.counters.undelivered for _, transition in transitions],
        "mismatches": [transition.counters.mismatches for _, transition in transitions],
        "has_open": [transition.has_open for _, transition in transitions],
    }


def _nearer(written: Written, seconds: float) -> None:
    if written.near_timer_seconds is None or seconds < written.near_timer_seconds:
        written.near_timer_seconds = seconds
