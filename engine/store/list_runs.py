"""Lists runs of a workspace, the newest first, in pages by key.

A filter that few runs fit must not read a whole history in one query: a page looks at `SCANNED_RUNS_MAX` runs and may be short,
or empty, with a cursor to go on.
"""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import msgspec

from engine.store.cursor import CursorRefused, make_cursor, read_cursor
from engine.store.run_status import ENDED_STATUSES, run_status, states_of
from engine.store.sql import Connection, Sql
from protocol.requests import RunStatus

PAGE_RUNS_MAX = 200
SCANNED_RUNS_MAX = 10_000

LIST_RUNS = Sql(
    "list_runs",
    """
WITH scanned AS MATERIALIZED (
  SELECT run_id, function_id, event_id, created_at FROM run
   WHERE workspace_id = $workspace_id AND ($before::uuid IS NULL OR run_id < $before)
   ORDER BY run_id DESC LIMIT $scanned_max
)
SELECT scanned.run_id, function.name AS function, event.name AS event, event.external_id AS event_id, scanned.created_at,
       live_run.state, live_run.attempt, run_end.status AS end_status, run_end.ended_at
  FROM scanned
  JOIN function USING (function_id)
  LEFT JOIN event ON event.event_id = scanned.event_id
  LEFT JOIN live_run ON live_run.run_id = scanned.run_id
  LEFT JOIN run_end ON run_end.run_id = scanned.run_id
 WHERE (live_run.run_id IS NOT NULL OR run_end.run_id IS NOT NULL)
   AND ($function_id::int IS NULL OR scanned.function_id = $function_id)
   AND ($event::text IS NULL OR event.name = $event)
   AND ($end_status::text IS NULL OR run_end.status = $end_status)
   AND ($states::text[] IS NULL OR (live_run.state = ANY($states) AND run_end.run_id IS NULL))
 ORDER BY scanned.run_id DESC LIMIT $runs_max""",
)
# Where the scan of LIST_RUNS ended, asked only when the page was not filled.
LAST_SCANNED_RUN = Sql(
    "last_scanned_run",
    """
SELECT run_id FROM run
 WHERE workspace_id = $workspace_id AND ($before::uuid IS NULL OR run_id < $before)
 ORDER BY run_id DESC OFFSET $scanned_max - 1 LIMIT 1""",
)
FIND_LISTED_FUNCTION = Sql(
    "find_listed_function", "SELECT function_id FROM function WHERE workspace_id = $workspace_id AND name = $name"
)


class RunEntry(msgspec.Struct, frozen=True):
    """A run in a list. `event_id` is the id that senders see."""

    run_id: UUID
    function: str
    status: RunStatus
    event: str | None
    event_id: str | None
    created_at: datetime
    ended_at: datetime | None
    attempt: int | None


class RunPage(msgspec.Struct, frozen=True):
    """A page. With a cursor there may be more; without there is not."""

    runs: list[RunEntry]
    cursor: str | None


class RunFilter(msgspec.Struct, frozen=True):
    """What a run must be to be listed; None: anything."""

    status: RunStatus | None = None
    function: str | None = None
    event: str | None = None


async def list_runs(
    conn: Connection, workspace_id: int, run_filter: RunFilter, cursor: str | None, runs_max: int = 50
) -> RunPage:
    """A page of runs behind the cursor. CursorRefused when it is of another list."""
    scope = ("runs", workspace_id, run_filter.status, run_filter.function, run_filter.event)
    before = _read_position(scope, cursor) if cursor else None
    runs_max = max(1, min(runs_max, PAGE_RUNS_MAX))
    function_id = None
    if run_filter.function is not None:
        function_id = await conn.fetchval(FIND_LISTED_FUNCTION, workspace_id=workspace_id, name=run_filter.function)
        if function_id is None:
            return RunPage([], None)
    scan = {"workspace_id": workspace_id, "before": before, "scanned_max": SCANNED_RUNS_MAX}
    status = run_filter.status
    rows = await conn.fetch(
        LIST_RUNS,
        **scan,
        function_id=function_id,
        event=run_filter.event,
        end_status=status if status in ENDED_STATUSES else None,
        states=states_of(status) if status is not None and status not in ENDED_STATUSES else None,
        runs_max=runs_max,
    )
    if len(rows) == runs_max:
        last = rows[-1]["run_id"]
    else:
        last = await conn.fetchval(LAST_SCANNED_RUN, **scan)
    return RunPage([_entry(row) for row in rows], make_cursor(scope, str(last)) if last is not None else None)


def _entry(row: object) -> RunEntry:
    fields = dict(row)  # type: ignore[call-overload]
    status = run_status(fields.pop("state"), fields.pop("end_status"))
    return RunEntry(status=status, **fields)


def _read_position(scope: tuple[object, ...], cursor: str) -> UUID:
    try:
        return UUID(read_cursor(scope, cursor))
    except ValueError:
        raise CursorRefused("The cursor does not name a run. Ask for the first page without a cursor.") from None
