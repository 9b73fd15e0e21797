"""The group writers of events and of reports: what each writes, and the hints that follow from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import trio

from engine.nursery.intake import Intake
from engine.store.append_events import Appended, AppendedEvent, NewEvent, append_events
from engine.store.apply_outcomes import Applied, RunReport, apply_outcomes
from engine.store.apply_plain_steps import PlainReports, apply_plain_steps, ended_runs
from engine.store.database import Database
from engine.store.event_buckets import bucket_locks
from engine.store.group_writer import REQUEUE, GroupWriter, Requeue
from engine.store.handover_room import HandoverRoom
from engine.store.hints import Hints
from protocol.requests import EntryAnswer


@dataclass(frozen=True)
class HandingOver:
    """How new runs start at once: leased to this engine in the transaction that creates them, and started through its intake."""

    engine_id: UUID
    lease_seconds: float
    intake: Intake


def make_event_writer(
    database: Database, hints: Hints, handing_over: HandingOver | None = None
) -> GroupWriter[NewEvent, AppendedEvent]:
    """Takes events in, and starts the runs that nothing holds back."""

    async def flush(events: Sequence[NewEvent], is_repeated: bool) -> Sequence[AppendedEvent | Requeue]:
        locks = bucket_locks(shared={(event.workspace_id, event.name) for event in events})
        if handing_over is None:
            appended = await database.transact_opened(locks, append_events, events, is_repeated=is_repeated)
        else:
            appended = await _append_and_start(database, handing_over, locks, events, is_repeated)
        if appended.has_due_runs:
            hints.runs_are_due()
        return appended.answers

    return GroupWriter("events", flush)


async def _append_and_start(
    database: Database, handing_over: HandingOver, locks: str, events: Sequence[NewEvent], is_repeated: bool
) -> Appended:
    intake = handing_over.intake
    # Of a group that may have been committed nothing is handed over, but what was, unheard, must be let go.
    places = 0 if is_repeated else intake.reserve(len(events))
    try:
        room = HandoverRoom(handing_over.engine_id, handing_over.lease_seconds, places, intake.full_workspaces())
        claimed_at = trio.current_time()
        appended = await database.transact_opened(locks, append_events, events, is_repeated=is_repeated, room=room)
        places -= len(appended.handovers)
        intake.start(appended.handovers, claimed_at)
    finally:
        intake.give_back(places)
    return appended


def make_report_writer(database: Database, hints: Hints, lease_seconds: float) -> GroupWriter[RunReport, EntryAnswer]:
    """Applies what invocations report."""

    async def flush(reports: Sequence[RunReport], is_repeated: bool) -> Sequence[EntryAnswer | Requeue]:
        return await write_reports(database, hints, reports, lease_seconds, is_repeated)

    return GroupWriter("reports", flush)


async def write_reports(
    database: Database, hints: Hints, reports: Sequence[RunReport], lease_seconds: float, is_repeated: bool = False
) -> list[EntryAnswer | Requeue]:
    """Apply a group: the plain reports in one statement, and then what is left in a transaction."""
    plain, others = PlainReports(), []
    first_of: dict[UUID, RunReport] = {}
    for report in reports:
        # One report of a run in a group: a second one waits for the next, so that it sees what the first did.
        if first_of.setdefault(report.run_id, report) is report and not plain.take(report):
            others.append(report)
    answers: dict[UUID, EntryAnswer] = {}
    if plain.reports:
        answers = await apply_plain_steps(database, plain, lease_seconds)
        hints.runs_ended(ended_runs(plain.reports, answers))
        others += [report for report in plain.reports if report.run_id not in answers]
    if others:
        applied = await database.transact(apply_outcomes, others, lease_seconds, is_repeated=is_repeated)
        _give_hints(hints, applied)
        for report, answer in zip(others, applied.answers, strict=True):
            if isinstance(answer, EntryAnswer):
                answers[report.run_id] = answer
    return [answers.get(report.run_id, REQUEUE) if first_of[report.run_id] is report else REQUEUE for report in reports]


def _give_hints(hints: Hints, applied: Applied) -> None:
    if applied.has_due_runs:
        hints.runs_are_due()
    if applied.owes_promotion:
        hints.promotion_owed.give()
    if applied.owes_backfill:
        hints.backfill_owed.give()
    if applied.near_timer_seconds is not None:
        hints.timer_is_near(applied.near_timer_seconds)
    hints.runs_ended(applied.ended_runs)
