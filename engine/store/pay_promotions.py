"""Pays owed promotions: keys with a free slot and waiters that the releasing transaction could not serve."""

from __future__ import annotations

from engine.store.release_slots import lock_keys, promote
from engine.store.sql import Connection, Sql

OWED_PER_GROUP_MAX = 64

FIND_OWED = Sql("find_owed_promotions", "SELECT limit_key_id FROM promotion ORDER BY limit_key_id LIMIT $keys_max")
# Under the key's lock, as whoever owes writes it: taken before the key, it deadlocks with a release that owes the same.
FORGET_OWED = Sql("forget_owed_promotions", "DELETE FROM promotion WHERE limit_key_id = ANY($key_ids::bigint[])")


async def pay_promotions(conn: Connection) -> tuple[bool, bool]:
    """Promote at up to 64 keys; whether a run became due, and whether more is owed."""
    rows = await conn.fetch(FIND_OWED, keys_max=OWED_PER_GROUP_MAX)
    if not rows:
        return False, False
    keys = await lock_keys(conn, [row["limit_key_id"] for row in rows])
    await conn.execute(FORGET_OWED, key_ids=list(keys))
    has_due_runs, owes = await promote(conn, keys)
    return has_due_runs, owes or len(rows) == OWED_PER_GROUP_MAX
