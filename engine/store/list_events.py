"""Lists events of a workspace, the newest first, in pages by their place in the order of events.

There is one index of events, by name. Without a name the page is merged from the newest of every name: the names are found by
skipping through the index, so the cost is that of the names and not of the events.
"""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import msgspec

from engine.store.cursor import CursorRefused, make_cursor, read_cursor
from engine.store.sql import Connection, Sql

PAGE_EVENTS_MAX = 200
NAMES_MAX = 1_000

LIST_EVENTS = Sql(
    "list_events",
    """
WITH RECURSIVE found_name (name, count) AS (
  (SELECT name, 1 FROM event WHERE workspace_id = $workspace_id ORDER BY name LIMIT 1)
  UNION ALL
  SELECT next.name, found_name.count + 1
    FROM found_name
    CROSS JOIN LATERAL (SELECT event.name FROM event
                         WHERE event.workspace_id = $workspace_id AND event.name > found_name.name
                         ORDER BY event.name LIMIT 1) AS next
   WHERE found_name.count < $names_max
)
SELECT page.seq, page.event_id, page.id, page.name, page.received_at, page.data_bytes,
       (SELECT count(*) FROM event_decision AS d WHERE d.event_id = page.event_id AND d.run_id IS NOT NULL)::int AS runs,
       (SELECT count(*) FROM event_decision AS d WHERE d.event_id = page.event_id AND d.run_id IS NULL)::int AS skipped
  FROM found_name
  CROSS JOIN LATERAL (
    SELECT seq, event_id, external_id AS id, name, received_at, octet_length(data) AS data_bytes FROM event
     WHERE event.workspace_id = $workspace_id AND event.name = found_name.name
       AND ($before::bigint IS NULL OR event.seq < $before)
     ORDER BY event.seq DESC LIMIT $events_max) AS page
 ORDER BY page.seq DESC LIMIT $events_max""",
)
LIST_EVENTS_OF_NAME = Sql(
    "list_events_of_name",
    """
SELECT seq, event_id, external_id AS id, name, received_at, octet_length(data) AS data_bytes,
       (SELECT count(*) FROM event_decision AS d WHERE d.event_id = event.event_id AND d.run_id IS NOT NULL)::int AS runs,
       (SELECT count(*) FROM event_decision AS d WHERE d.event_id = event.event_id AND d.run_id IS NULL)::int AS skipped
  FROM event
 WHERE workspace_id = $workspace_id AND name = $name AND ($before::bigint IS NULL OR seq < $before)
 ORDER BY seq DESC LIMIT $events_max""",
)


class EventEntry(msgspec.Struct, frozen=True):
    """An event in a list. `id` is what senders see, `event_id` the engine's own."""

    event_id: UUID
    id: str
    name: str
    received_at: datetime
    data_bytes: int
    runs: int
    skipped: int


class EventPage(msgspec.Struct, frozen=True):
    """A page. With a cursor there may be more; without there is not."""

    events: list[EventEntry]
    cursor: str | None


async def list_events(
    conn: Connection, workspace_id: int, name: str | None, cursor: str | None, events_max: int = 50
) -> EventPage:
    """A page of events behind the cursor. CursorRefused when it is of another list."""
    scope = ("events", workspace_id, name)
    before = _read_position(scope, cursor) if cursor else None
    events_max = max(1, min(events_max, PAGE_EVENTS_MAX))
    if name is None:
        rows = await conn.fetch(LIST_EVENTS, workspace_id=workspace_id, before=before, events_max=events_max, names_max=NAMES_MAX)
    else:
        rows = await conn.fetch(LIST_EVENTS_OF_NAME, workspace_id=workspace_id, name=name, before=before, events_max=events_max)
    events = [EventEntry(**{field: row[field] for field in EventEntry.__struct_fields__}) for row in rows]
    has_more = len(rows) == events_max
    return EventPage(events, make_cursor(scope, str(rows[-1]["seq"])) if has_more else None)


def _read_position(scope: tuple[object, ...], cursor: str) -> int:
    position = read_cursor(scope, cursor)
    if not position.isdigit() or len(position) > 18:
        raise CursorRefused("The cursor does not name an event. Ask for the first page without a cursor.")
    return int(position)
