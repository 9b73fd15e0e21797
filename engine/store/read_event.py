"""Reads one event with what was decided for each function: the run that it started, or why there is none."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import msgspec
from msgspec import Raw

from engine.store.append_events import EVENT_SCOPE
from engine.store.sql import Connection, Sql

READ_EVENT = Sql(
    "read_event",
    """
SELECT event_id, external_id, name, data, received_at
  FROM event WHERE event_id = $event_id AND workspace_id = $workspace_id""",
)
# The ids of senders are found for as long as they deduplicate.
FIND_EVENT_BY_SENT_ID = Sql(
    "find_event_by_sent_id",
    """
SELECT event_id FROM event_dedup
 WHERE workspace_id = $workspace_id AND scope = $scope AND external_id = $external_id""",
)
READ_EVENT_DECISIONS = Sql(
    "read_event_decisions",
    """
SELECT function.name AS function, decision.decision, decision.reason, decision.run_id
  FROM event_decision AS decision JOIN function USING (function_id)
 WHERE decision.event_id = $event_id
 ORDER BY function.name""",
)


class DecisionEntry(msgspec.Struct, frozen=True):
    """What one function does with the event: `run` with its id, or `skipped` with the reason."""

    function: str
    decision: str
    reason: str | None
    run_id: UUID | None


class EventDetail(msgspec.Struct, frozen=True):
    """An event. `id` is what senders see, `event_id` the engine's own."""

    event_id: UUID
    id: str
    name: str
    received_at: datetime
    data: Raw
    decisions: list[DecisionEntry]


async def read_event(conn: Connection, workspace_id: int, wanted_id: str) -> EventDetail | None:
    """The event with this id of either kind; None when the workspace has none."""
    row = None
    if (event_id := _as_uuid(wanted_id)) is not None:
        row = await conn.fetchrow(READ_EVENT, event_id=event_id, workspace_id=workspace_id)
    if row is None:
        event_id = await conn.fetchval(FIND_EVENT_BY_SENT_ID, workspace_id=workspace_id, scope=EVENT_SCOPE, external_id=wanted_id)
        if event_id is None:
            return None
        row = await conn.fetchrow(READ_EVENT, event_id=event_id, workspace_id=workspace_id)
        if row is None:
            return None
    decisions = await conn.fetch(READ_EVENT_DECISIONS, event_id=row["event_id"])
    return EventDetail(
        row["event_id"],
        row["external_id"],
        row["name"],
        row["received_at"],
        Raw(row["data"].encode()),
        [DecisionEntry(**decision) for decision in decisions],
    )


def _as_uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None
