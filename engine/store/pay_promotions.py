"""Pays owed promotions: keys with a free slot and waiters that the releasing transaction could not serve."""

from __future__ import annotations

from engine.store.release_slots import lock_keys, promote
from engine.store.sql import Connection, Sql

TAKE_OWED = Sql(
    "take_owed_promotions",
    """
DELETE FROM promotion WHERE limit_key_id IN (
  SELECT limit_key_id FROM promotion ORDER BY limit_key_id LIMIT 64 FOR UPDATE SKIP LOCKED)
RETURNING limit_key_id""",
)


async def pay_promotions(conn: Connection) -> tuple[bool, bool]:
    """Promote at up to 64 keys; whether a run became due, and whether more is owed."""
    rows = await conn.fetch(TAKE_OWED)
    if not rows:
        return False, False
    keys = await lock_keys(conn, [row["limit_key_id"] for row in rows])
    has_due_runs, owes = await promote(conn, keys)
    return has_due_runs, owes or len(rows) == 64
