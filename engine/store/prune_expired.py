"""Deletes what is over, a page at a time: event ids whose 24 hours of deduplication have passed, stored values that no step took in a day."""

from __future__ import annotations

from engine.store.sql import Connection, Sql

PAGE_ROWS = 1_000
# Values are large: a page of them must not be a long transaction either.
PAGE_VALUES = 100

# SKIP LOCKED: two engines prune side by side and never wait for each other or for a sender.
PRUNE_EVENT_IDS = Sql(
    "prune_event_ids",
    """
WITH page AS (
  SELECT workspace_id, scope, external_id FROM event_dedup
   WHERE expires_at < now() ORDER BY expires_at LIMIT $rows_max FOR UPDATE SKIP LOCKED
)
DELETE FROM event_dedup USING page
 WHERE event_dedup.workspace_id = page.workspace_id AND event_dedup.scope = page.scope
   AND event_dedup.external_id = page.external_id""",
)
PRUNE_STORED_VALUES = Sql(
    "prune_stored_values",
    """
WITH page AS (
  SELECT value_id FROM stored_value
   WHERE created_at < now() - interval '1 day' ORDER BY created_at LIMIT $rows_max FOR UPDATE SKIP LOCKED
)
DELETE FROM stored_value USING page WHERE stored_value.value_id = page.value_id""",
)


async def prune_expired(conn: Connection, rows_max: int = PAGE_ROWS) -> int:
    """Delete one page of each; how many rows they had. None: nothing is left for now."""
    event_ids = await conn.execute(PRUNE_EVENT_IDS, rows_max=rows_max)
    return event_ids + await conn.execute(PRUNE_STORED_VALUES, rows_max=min(rows_max, PAGE_VALUES))
