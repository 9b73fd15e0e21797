"""Applies what invocations reported, for many runs in ONE fenced transaction: memo, waits, retries, events sent, the next state.

`core.decide` says what changes; this file reads what deciding needs, and writes what was decided. A report of a generation that is
not the run's current lease changes nothing and is answered `stale`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from asyncpg.pgproto.pgproto import UUID as DriverUUID
from msgspec import UNSET, Raw, UnsetType

from engine.core.decide import decide
from engine.core.ids import sent_event_id
from engine.core.outcome import Outcome, Reported
from engine.core.run import LiveRun, Recorded
from engine.core.transition import Refused, Transition
from engine.store.append_events import NewEvent, claim_event_ids, write_events
from engine.store.event_buckets import lock_event_buckets
from engine.store.function_configs import read_function_configs
from engine.store.group_writer import REQUEUE, Requeue
from engine.store.match_waits import find_waiting_runs
from engine.store.memo_entries import memo_entry, memo_ref
from engine.store.read_recorded import read_recorded
from engine.store.register_waits import PreparedWait, WantedWait, prepare_waits
from engine.store.release_slots import release_slots
from engine.store.sql import Connection, Sql
from engine.store.stored_values import delete_used_values, inline_stored_values, stored_steps
from engine.store.write_transitions import Decided, write_transitions
from protocol.calls import MemoEntry, Retry
from protocol.limits import REF_BYTES_MIN
from protocol.ops import SendEvents, WaitForEvent
from protocol.requests import CheckpointEntry, EntryAnswer, Refusal

LOCK_REPORTED_RUNS = Sql(
    "lock_reported_runs",
    """
SELECT run_id, workspace_id, function_id, state, generation, position, memo_bytes, attempt, interruptions, undelivered, mismatches,
       extract(epoch FROM due_at - clock_timestamp())::float8 AS lease_seconds
  FROM live_run WHERE run_id = ANY($run_ids::uuid[])
 ORDER BY run_id FOR UPDATE SKIP LOCKED""",
)
# With events to send, runs beyond this group may wake; all are locked in one ascending order, so this waits instead of skipping.
LOCK_RUNS_AND_WAITERS = Sql(
    "lock_runs_and_waiters",
    """
SELECT run_id, workspace_id, function_id, state, generation, position, memo_bytes, attempt, interruptions, undelivered, mismatches,
       extract(epoch FROM due_at - clock_timestamp())::float8 AS lease_seconds
  FROM live_run WHERE run_id = ANY($run_ids::uuid[])
 ORDER BY run_id FOR UPDATE""",
)
FIND_LIVE_RUNS = Sql("find_live_runs", "SELECT run_id FROM live_run WHERE run_id = ANY($run_ids::uuid[])")
FIND_ENDED_INVOCATIONS = Sql(
    "find_ended_invocations",
    """
SELECT i.run_id, i.outcome
  FROM invocation AS i
  JOIN unnest($run_ids::uuid[], $generations::bigint[]) AS u (run_id, generation) USING (run_id, generation)""",
)
FORGET_EVENT_IDS = Sql(
    "forget_event_ids",
    "DELETE FROM event_dedup WHERE event_id = ANY($event_ids::uuid[]) AND workspace_id = ANY($workspace_ids::int[])",
)
READ_NEWS = Sql(
    "read_news",
    """
SELECT step.run_id, step.step_id, step.kind, step.position, step.error, step.is_abandoned, octet_length(step.data) AS bytes,
       CASE WHEN octet_length(step.data) < $ref_bytes_min THEN step.data
            WHEN (SELECT (app.manifest::json #>> '{capabilities,refs}')::boolean FROM app WHERE app.workspace_id = u.workspace_id) THEN NULL
            ELSE step.data END AS data
  FROM step JOIN unnest($run_ids::uuid[], $workspace_ids::int[], $known::int[]) AS u (run_id, workspace_id, known) USING (run_id)
 WHERE step.position > u.known
 ORDER BY step.run_id, step.position""",
)


@dataclass(frozen=True, slots=True)
class RunReport:
    """What became of an invocation, or of a part of it, of one run of one workspace."""

    workspace_id: int
    run_id: UUID
    generation: int
    outcome: Outcome


def report_of_entry(workspace_id: int, entry: CheckpointEntry) -> RunReport:
    """What an entry of a checkpoint reports. The driver's UUIDs are made, hashed and sent several times faster than others."""
    outcome = Reported(tuple(entry.ops), entry.known, entry.ends)
    return RunReport(workspace_id, DriverUUID(entry.run_id), entry.generation, outcome)


@dataclass(slots=True)
class Applied:
    """One answer per report, and what the engine should be told."""

    answers: list[EntryAnswer | Requeue] = field(default_factory=list)
    has_due_runs: bool = False
    owes_promotion: bool = False
    owes_backfill: bool = False
    near_timer_seconds: float | None = None
    ended_runs: list[UUID] = field(default_factory=list)


async def apply_outcomes(
    conn: Connection, reports: Sequence[RunReport], lease_seconds: float, is_repeated: bool = False
) -> Applied:
    """Apply reports. `is_repeated`: an earlier try of the same ones may have been committed."""
    # One report of a run in a group: a second one waits for the next, so that it sees what the first did.
    first_of: dict[UUID, RunReport] = {}
    for report in reports:
        first_of.setdefault(report.run_id, report)
    inlined = {report.run_id: report for report in await inline_stored_values(conn, list(first_of.values()))}
    sends = [send for report in inlined.values() for send in _sends(report)]
    await lock_event_buckets(
        conn,
        shared={(send.event.workspace_id, send.event.name) for send in sends},
        exclusive=_wait_names(inlined.values()),
    )
    # Ids before runs, as ingest does it: the other order deadlocks with a post of the same event id.
    fresh = {event.event_id for event in await claim_event_ids(conn, [send.event for send in sends])} if sends else set()
    runs, leases, held_elsewhere = await _lock_runs(conn, list(inlined), [send.event for send in sends])
    answers: dict[UUID, EntryAnswer] = {}
    valid = _fence(inlined, runs, held_elsewhere, answers)
    await _recognize_repeated(conn, inlined, answers)
    applied = Applied()
    decided = await _decide(conn, valid, runs, answers, applied)
    written = await write_transitions(conn, decided, lease_seconds)
    await delete_used_values(conn, [first_of[item.run.run_id] for item in decided if item.transition is not None])
    woke_runs = await write_events(conn, await _outgoing(conn, sends, decided, fresh))
    promoted, applied.owes_promotion = await release_slots(conn, written.left_lease)
    applied.has_due_runs = written.has_due_runs or woke_runs or promoted
    applied.near_timer_seconds = written.near_timer_seconds
    applied.ended_runs = written.ended_runs
    await _answer_accepted(conn, decided, first_of, leases, lease_seconds, answers)
    applied.answers = _in_order(reports, first_of, answers)
    return applied


@dataclass(frozen=True, slots=True)
class _Send:
    """An event that an op asks to send; its id is the same on every try."""

    run_id: UUID
    step_id: str
    event: NewEvent


def _sends(report: RunReport) -> list[_Send]:
    if not isinstance(report.outcome, Reported):
        return []
    return [
        _Send(
            report.run_id,
            op.id,
            NewEvent(
                report.workspace_id,
                UUID(sent_event_id(report.run_id, op.id, index)),
                event.name,
                bytes(event.data).decode(),
                external_id=event.id if isinstance(event.id, str) else None,
            ),
        )
        for op in report.outcome.ops
        if isinstance(op, SendEvents)
        for index, event in enumerate(op.events)
    ]


def _wait_names(reports: Any) -> set[tuple[int, str]]:
    return {
        (report.workspace_id, op.event)
        for report in reports
        if isinstance(report.outcome, Reported)
        for op in report.outcome.ops
        if isinstance(op, WaitForEvent)
    }


async def _lock_runs(
    conn: Connection, run_ids: list[UUID], outgoing: list[NewEvent]
) -> tuple[dict[UUID, LiveRun], dict[UUID, float | None], set[UUID]]:
    """The locked runs of the group with the rest of their leases, and those that another transaction holds."""
    if outgoing:
        waiting = await find_waiting_runs(conn, outgoing)
        rows = await conn.fetch(LOCK_RUNS_AND_WAITERS, run_ids=[*run_ids, *waiting])
    else:
        rows = await conn.fetch(LOCK_REPORTED_RUNS, run_ids=run_ids)
    wanted = set(run_ids)
    runs: dict[UUID, LiveRun] = {}
    leases: dict[UUID, float | None] = {}
    for row in rows:
        if row["run_id"] in wanted:
            fields = dict(row)
            leases[row["run_id"]] = fields.pop("lease_seconds")
            runs[row["run_id"]] = LiveRun(**fields)
    held_elsewhere: set[UUID] = set()
    if missing := [run_id for run_id in run_ids if run_id not in runs]:
        held_elsewhere = {row["run_id"] for row in await conn.fetch(FIND_LIVE_RUNS, run_ids=missing)}
    return runs, leases, held_elsewhere


def _fence(
    first_of: dict[UUID, RunReport],
    runs: dict[UUID, LiveRun],
    held_elsewhere: set[UUID],
    answers: dict[UUID, EntryAnswer],
) -> list[RunReport]:
    """The reports whose lease is the run's current one; the others get their answer."""
    valid: list[RunReport] = []
    for run_id, report in first_of.items():
        run = runs.get(run_id)
        if run is None and run_id in held_elsewhere:
            continue
        is_current = run is not None and run.generation == report.generation and run.workspace_id == report.workspace_id
        if run is not None and is_current and run.state in ("leased", "cancelled"):
            valid.append(report)
        else:
            answers[run_id] = EntryAnswer(str(run_id), report.generation, "stale")
    return valid


async def _recognize_repeated(conn: Connection, first_of: dict[UUID, RunReport], answers: dict[UUID, EntryAnswer]) -> None:
    """The end of an invocation that came before and was applied is answered as it was then."""
    stale = [
        report
        for run_id, report in first_of.items()
        if run_id in answers and isinstance(report.outcome, Reported) and report.outcome.ends
    ]
    if not stale:
        return
    rows = await conn.fetch(
        FIND_ENDED_INVOCATIONS,
        run_ids=[report.run_id for report in stale],
        generations=[report.generation for report in stale],
    )
    outcomes = {row["run_id"]: row["outcome"] for row in rows}
    for report in stale:
        if outcomes.get(report.run_id) in ("completed", "failed", "parked", "nothing_planned"):
            answers[report.run_id] = EntryAnswer(str(report.run_id), report.generation, "ok", lease_seconds=0.0)


async def _decide(
    conn: Connection,
    valid: list[RunReport],
    runs: dict[UUID, LiveRun],
    answers: dict[UUID, EntryAnswer],
    applied: Applied,
) -> list[Decided]:
    if not valid:
        return []
    configs = await read_function_configs(conn, {runs[report.run_id].function_id for report in valid})
    recorded = await read_recorded(conn, valid)
    prepared = await _prepare_waits(conn, valid, runs, recorded)
    decided: list[Decided] = []
    for report in valid:
        run = runs[report.run_id]
        if run.state == "cancelled":
            answers[report.run_id] = EntryAnswer(str(report.run_id), report.generation, "cancelled")
            if not isinstance(report.outcome, Reported) or report.outcome.ends:
                decided.append(Decided(run, report.outcome, None, {}))
            continue
        waits = prepared.get(report.run_id, {})
        refusal = next((wait.refusal for wait in waits.values() if wait.refusal is not None), None)
        transition: Transition | Refused
        if refusal is not None:
            transition = Refused("wait_refused", refusal, "Change the wait; see the page on waiting for events.")
        else:
            known = recorded[report.run_id]
            earlier = {step_id: wait.earlier for step_id, wait in waits.items() if wait.earlier is not None}
            known = Recorded(known.steps, known.waits, known.retries, known.failed_attempts, earlier)
            transition = decide(
                run,
                configs[run.function_id],
                known,
                report.outcome,
                jitter=random.random(),  # not for secrets
            )
        if isinstance(transition, Refused):
            error = Refusal(transition.code, transition.message, transition.hint)
            answers[report.run_id] = EntryAnswer(str(report.run_id), report.generation, "refused", error=error)
            continue
        applied.owes_backfill = applied.owes_backfill or any(wait.is_pending for wait in waits.values())
        decided.append(Decided(run, report.outcome, transition, waits))
    return decided


async def _prepare_waits(
    conn: Connection, valid: list[RunReport], runs: dict[UUID, LiveRun], recorded: dict[UUID, Recorded]
) -> dict[UUID, dict[str, PreparedWait]]:
    wanted = [
        WantedWait(report.workspace_id, report.run_id, op.id, op.event, op.match, op.if_, op.lookback)
        for report in valid
        if isinstance(report.outcome, Reported) and runs[report.run_id].state == "leased"
        for op in report.outcome.ops
        if isinstance(op, WaitForEvent)
        and op.id not in recorded[report.run_id].steps
        and op.id not in recorded[report.run_id].waits
    ]
    prepared: dict[UUID, dict[str, PreparedWait]] = {}
    for wait in await prepare_waits(conn, wanted) if wanted else ():
        prepared.setdefault(wait.wanted.run_id, {})[wait.wanted.step_id] = wait
    return prepared


async def _outgoing(conn: Connection, sends: list[_Send], decided: list[Decided], fresh: set[UUID]) -> list[NewEvent]:
    """The events of accepted reports that were not sent before. What a stale or refused report had claimed is given back."""
    accepted = {(item.run.run_id, op.id) for item in decided if item.transition for op in item.transition.sends}
    wanted = [send.event for send in sends if (send.run_id, send.step_id) in accepted]
    wanted_ids = {event.event_id for event in wanted}
    unsent = [
        send.event
        for send in sends
        if send.event.event_id in fresh and send.event.event_id not in wanted_ids and send.event.external_id is not None
    ]
    if unsent:
        await conn.execute(
            FORGET_EVENT_IDS,
            event_ids=[event.event_id for event in unsent],
            workspace_ids=[event.workspace_id for event in unsent],
        )
        # Another report of this group may send an event of the same id, and had lost it to the one that sends nothing.
        given_back = {event.dedup_key for event in unsent}
        again = [
            event
            for event in wanted
            if event.event_id not in fresh and event.external_id is not None and event.dedup_key in given_back
        ]
        fresh = fresh | {event.event_id for event in await claim_event_ids(conn, again)}
    return [event for event in wanted if event.event_id in fresh]


async def _answer_accepted(
    conn: Connection,
    decided: list[Decided],
    reports: dict[UUID, RunReport],
    leases: dict[UUID, float | None],
    lease_seconds: float,
    answers: dict[UUID, EntryAnswer],
) -> None:
    news = await _read_news(conn, [item for item in decided if item.transition is not None])
    for item in decided:
        if item.transition is None:
            continue
        run_id = item.run.run_id
        stored = stored_steps(reports[run_id])
        own = [
            MemoEntry(
                memo.step_id,
                memo.kind,
                item.run.position + place,
                data=UNSET if memo.kind == "step" else _raw(memo.data),
                error=_raw(memo.error),
                abandoned=memo.is_abandoned,
                # The app has the value under the reference with which it stored it; from now on it meets this one.
                ref=memo_ref(run_id, item.run.position + place) if memo.step_id in stored else UNSET,
                bytes=len((memo.data or "").encode()) if memo.step_id in stored else UNSET,
            )
            for place, memo in enumerate(item.transition.memo, 1)
        ]
        left = leases[run_id] or 0.0
        answers[run_id] = EntryAnswer(
            str(run_id),
            item.run.generation,
            "ok",
            # What write_transitions leaves it with: renewed once a third is gone.
            lease_seconds=max(left, 0.0) if left > lease_seconds * 2 / 3 else lease_seconds,
            resolved=[*news.get(run_id, ()), *own],
            retries=[Retry(step_id, attempt, seconds) for step_id, attempt, seconds in item.transition.answered_retries],
            abandoned=list(item.transition.answered_abandoned),
        )


async def _read_news(conn: Connection, decided: list[Decided]) -> dict[UUID, list[MemoEntry]]:
    """Memo entries that the app was not told, from before this group."""
    asking = [
        (item.run, item.outcome.known)
        for item in decided
        if isinstance(item.outcome, Reported) and item.run.position > item.outcome.known and not item.outcome.ends
    ]
    if not asking:
        return {}
    rows = await conn.fetch(
        READ_NEWS,
        run_ids=[run.run_id for run, _ in asking],
        workspace_ids=[run.workspace_id for run, _ in asking],
        known=[known for _, known in asking],
        ref_bytes_min=REF_BYTES_MIN,
    )
    position_before = {run.run_id: run.position for run, _ in asking}
    news: dict[UUID, list[MemoEntry]] = {}
    for row in rows:
        if row["position"] <= position_before[row["run_id"]]:
            # The statement left data out where the app takes a reference instead.
            news.setdefault(row["run_id"], []).append(memo_entry(row, has_refs=True))
    return news


def _raw(text: str | None) -> Raw | UnsetType:
    return UNSET if text is None else Raw(text.encode())


def _in_order(
    reports: Sequence[RunReport], first_of: dict[UUID, RunReport], answers: dict[UUID, EntryAnswer]
) -> list[EntryAnswer | Requeue]:
    return [answers.get(report.run_id, REQUEUE) if first_of[report.run_id] is report else REQUEUE for report in reports]
