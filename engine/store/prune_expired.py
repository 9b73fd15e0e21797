"""Deletes what is over: the event ids whose 24 hours of deduplication have passed, a page at a time."""

from __future__ import annotations

from engine.store.sql import Connection, Sql

PAGE_ROWS = 1_000

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


async def prune_expired(conn: Connection, rows_max: int = PAGE_ROWS) -> int:
    """Delete one page; how many rows it had. Fewer than `rows_max`: nothing is left for now."""
    return await conn.execute(PRUNE_EVENT_IDS, rows_max=rows_max)
