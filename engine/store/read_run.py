"""Reads one run as people see it: its event, steps, failed tries, open waits and retries, invocations, and why it does not run.

The times of a step add up: between the commit before it and its own commit, the app worked, the step waited on purpose, and the
rest was Durable's.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
from msgspec import Raw

from engine.store.explain_run import explain_run
from engine.store.run_status import run_status
from engine.store.sql import Connection, Sql
from engine.store.step_times import StepSpan, StepTimes, split_times
from protocol.requests import RunStatus

READ_RUN = Sql(
    "read_run",
    """
SELECT run.run_id, function.name AS function, run.created_at, run.event_id, live_run.state, live_run.generation, live_run.attempt,
       live_run.interruptions, live_run.due_at, live_run.leased_at, run_end.status AS end_status, run_end.output, run_end.error,
       run_end.ended_at, now() AS read_at,
       event.external_id AS event_visible_id, event.name AS event_name, event.data AS event_data,
       event.received_at AS event_received_at
  FROM run
  JOIN function ON function.function_id = run.function_id
  LEFT JOIN event ON event.event_id = run.event_id
  LEFT JOIN live_run ON live_run.run_id = run.run_id
  LEFT JOIN run_end ON run_end.run_id = run.run_id
 WHERE run.run_id = $run_id AND run.workspace_id = $workspace_id""",
)
READ_RUN_STEPS = Sql(
    "read_run_steps",
    """
SELECT step_id, position, kind, data, error, is_abandoned, event_id, attempt, generation, planned_at, started_at,
       duration_seconds, committed_at
  FROM step WHERE run_id = $run_id ORDER BY position""",
)
READ_RUN_ATTEMPTS = Sql(
    "read_run_attempts",
    """
SELECT step_id, attempt, error, generation, started_at, duration_seconds, failed_at
  FROM step_attempt WHERE run_id = $run_id ORDER BY step_id, attempt""",
)
READ_RUN_WAITS = Sql(
    "read_run_waits",
    """
SELECT step_id, kind, deadline_at, registered_at, event_name, match, condition, is_pending
  FROM wait WHERE run_id = $run_id ORDER BY wait_id""",
)
READ_RUN_RETRIES = Sql(
    "read_run_retries", "SELECT step_id, attempt, due_at FROM step_retry WHERE run_id = $run_id ORDER BY due_at, step_id"
)
READ_RUN_INVOCATIONS = Sql(
    "read_run_invocations",
    """
SELECT invocation.generation, invocation.attempt, engine.name AS engine, invocation.leased_at, invocation.ended_at,
       invocation.outcome, invocation.detail
  FROM invocation LEFT JOIN engine USING (engine_id)
 WHERE invocation.run_id = $run_id ORDER BY invocation.generation""",
)


class RunEvent(msgspec.Struct, frozen=True):
    """The event that made the run. `id` is what senders see, `event_id` the engine's own."""

    event_id: UUID
    id: str
    name: str
    data: Raw
    received_at: datetime


class FailedTry(msgspec.Struct, frozen=True):
    """A try of a step that failed, and was or will be followed by another, or was the last."""

    attempt: int
    error: Raw
    started_at: datetime | None
    duration_seconds: float | None
    failed_at: datetime


class RunStep(msgspec.Struct, frozen=True, omit_defaults=True):
    """A step with its memo entry, or an open one: `status` is completed, failed, abandoned, waiting or retrying.

    Open steps have no position and no times yet; `deadline_at` is the end of a wait or the time of the next try.
    """

    id: str
    kind: str
    status: str
    position: int | None = None
    data: Raw | None = None
    error: Raw | None = None
    attempt: int = 1
    failed_attempts: list[FailedTry] = []
    planned_at: datetime | None = None
    started_at: datetime | None = None
    committed_at: datetime | None = None
    duration_seconds: float | None = None
    times: StepTimes | None = None
    deadline_at: datetime | None = None
    event: str | None = None
    match: Raw | None = None
    condition: str | None = None


class InvocationEntry(msgspec.Struct, frozen=True):
    """One hand-over of the run to the app; without an end it is going on."""

    generation: int
    attempt: int
    engine: str | None
    leased_at: datetime | None
    ended_at: datetime | None
    outcome: str | None
    detail: str | None


class RunDetail(msgspec.Struct, frozen=True):
    """A run. `why` says in one sentence why it does not run now; None while it runs and after its end."""

    run_id: UUID
    function: str
    status: RunStatus
    why: str | None
    event: RunEvent | None
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    attempt: int | None
    output: Raw | None
    error: Raw | None
    steps: list[RunStep]
    invocations: list[InvocationEntry]
    tail: StepTimes
    read_at: datetime


async def read_run(conn: Connection, workspace_id: int, run_id: UUID) -> RunDetail | None:
    """The run; None when the workspace has none with this id.

    `tail` is the time after the last commit: until the end of the run, or until now.
    """
    row = await conn.fetchrow(READ_RUN, run_id=run_id, workspace_id=workspace_id)
    if row is None:
        return None
    invocations = await conn.fetch(READ_RUN_INVOCATIONS, run_id=run_id)
    steps, tail = await _steps(conn, row)
    return RunDetail(
        run_id=run_id,
        function=row["function"],
        status=run_status(row["state"], row["end_status"]),
        why=await explain_run(conn, run_id) if row["end_status"] is None else None,
        event=_event(row),
        created_at=row["created_at"],
        started_at=invocations[0]["leased_at"] if invocations else row["leased_at"],
        ended_at=row["ended_at"],
        attempt=row["attempt"],
        output=_raw(row["output"]),
        error=_raw(row["error"]),
        steps=steps,
        invocations=_invocations(row, invocations),
        tail=tail,
        read_at=row["read_at"],
    )


async def _steps(conn: Connection, run: Any) -> tuple[list[RunStep], StepTimes]:
    """The steps in commit order and then the open ones, and what came after the last commit."""
    run_id = run["run_id"]
    rows = await conn.fetch(READ_RUN_STEPS, run_id=run_id)
    failed: dict[str, list[Any]] = {}
    for attempt in await conn.fetch(READ_RUN_ATTEMPTS, run_id=run_id):
        failed.setdefault(attempt["step_id"], []).append(attempt)
    spans = [
        StepSpan(
            kind=row["kind"],
            committed_at=row["committed_at"],
            planned_at=row["planned_at"],
            tries=_tries(row, failed.get(row["step_id"], [])),
        )
        for row in rows
    ]
    times, tail = split_times(run["created_at"], spans, run["ended_at"] or run["read_at"])
    steps = [
        _committed_step(row, failed.get(row["step_id"], []), step_times) for row, step_times in zip(rows, times, strict=True)
    ]
    settled = {step.id for step in steps}
    # What ended between the two looks is not shown twice.
    return steps + [step for step in await _open_steps(conn, run_id, failed) if step.id not in settled], tail


def _tries(row: Any, failed: list[Any]) -> tuple[tuple[datetime, float], ...]:
    """When each try of the body began and how long it took, by the app's clock. The last failure may be the memo itself."""
    tries = {attempt["attempt"]: attempt for attempt in failed} | {row["attempt"]: row}
    return tuple(
        (tried["started_at"], tried["duration_seconds"])
        for _, tried in sorted(tries.items())
        if tried["started_at"] is not None and tried["duration_seconds"] is not None
    )


def _committed_step(row: Any, failed: list[Any], times: StepTimes) -> RunStep:
    return RunStep(
        id=row["step_id"],
        kind=row["kind"],
        status="abandoned" if row["is_abandoned"] else "failed" if row["error"] is not None else "completed",
        position=row["position"],
        data=_raw(row["data"]),
        error=_raw(row["error"]),
        attempt=row["attempt"],
        failed_attempts=_failed_tries(failed),
        planned_at=row["planned_at"],
        started_at=row["started_at"],
        committed_at=row["committed_at"],
        duration_seconds=row["duration_seconds"],
        times=times,
    )


async def _open_steps(conn: Connection, run_id: UUID, failed: dict[str, list[Any]]) -> list[RunStep]:
    waits = [
        RunStep(
            id=wait["step_id"],
            kind=wait["kind"],
            status="waiting",
            planned_at=wait["registered_at"],
            deadline_at=wait["deadline_at"],
            event=wait["event_name"],
            match=_raw(wait["match"]),
            condition=wait["condition"],
        )
        for wait in await conn.fetch(READ_RUN_WAITS, run_id=run_id)
    ]
    retries = [
        RunStep(
            id=retry["step_id"],
            kind="step",
            status="retrying",
            attempt=retry["attempt"],
            failed_attempts=_failed_tries(failed.get(retry["step_id"], [])),
            deadline_at=retry["due_at"],
        )
        for retry in await conn.fetch(READ_RUN_RETRIES, run_id=run_id)
    ]
    return waits + retries


def _failed_tries(failed: list[Any]) -> list[FailedTry]:
    return [
        FailedTry(
            attempt["attempt"],
            Raw(attempt["error"].encode()),
            attempt["started_at"],
            attempt["duration_seconds"],
            attempt["failed_at"],
        )
        for attempt in failed
    ]


def _invocations(run: Any, rows: list[Any]) -> list[InvocationEntry]:
    entries = [InvocationEntry(**row) for row in rows]
    if run["state"] in ("leased", "cancelled") and all(entry.generation != run["generation"] for entry in entries):
        entries.append(InvocationEntry(run["generation"], run["attempt"], None, run["leased_at"], None, None, None))
    return entries


def _event(row: Any) -> RunEvent | None:
    if row["event_visible_id"] is None:
        return None
    return RunEvent(
        row["event_id"],
        row["event_visible_id"],
        row["event_name"],
        Raw(row["event_data"].encode()),
        row["event_received_at"],
    )


def _raw(text: str | None) -> Raw | None:
    return None if text is None else Raw(text.encode())
