"""The group writers of events and of reports: what each writes, and the hints that follow from it."""

from __future__ import annotations

from collections.abc import Sequence

from engine.store.append_events import AppendedEvent, NewEvent, append_events
from engine.store.apply_outcomes import RunReport, apply_outcomes
from engine.store.database import Database
from engine.store.group_writer import GroupWriter, Requeue
from engine.store.hints import Hints
from protocol.requests import EntryAnswer


def make_event_writer(database: Database, hints: Hints) -> GroupWriter[NewEvent, AppendedEvent]:
    """Takes events in."""

    async def flush(events: Sequence[NewEvent], is_repeated: bool) -> Sequence[AppendedEvent | Requeue]:
        appended = await database.transact(append_events, events, is_repeated=is_repeated)
        if appended.has_due_runs:
            hints.runs_are_due()
        return appended.answers

    return GroupWriter("events", flush)


def make_report_writer(database: Database, hints: Hints, lease_seconds: float) -> GroupWriter[RunReport, EntryAnswer]:
    """Applies what invocations report."""

    async def flush(reports: Sequence[RunReport], is_repeated: bool) -> Sequence[EntryAnswer | Requeue]:
        applied = await database.transact(apply_outcomes, reports, lease_seconds, is_repeated=is_repeated)
        if applied.has_due_runs:
            hints.runs_are_due()
        if applied.owes_promotion:
            hints.promotion_owed.give()
        if applied.owes_backfill:
            hints.backfill_owed.give()
        if applied.near_timer_seconds is not None:
            hints.timer_is_near(applied.near_timer_seconds)
        hints.runs_ended(applied.ended_runs)
        return applied.answers

    return GroupWriter("reports", flush)
