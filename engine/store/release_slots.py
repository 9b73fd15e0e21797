"""Gives concurrency slots back and hands them to the runs that wait for them, in the transaction that ends the holder.

Lock order: the caller's runs, then keys in id order, then parked runs with SKIP LOCKED. A promotion that meets a lock is not waited
for: it becomes a row of `promotion`, which any engine pays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

from engine.store.sql import Connection, Sql

# Runs that one release looks at per key; what is left over is owed.
PROMOTIONS_PER_KEY_MAX = 32

DELETE_SLOTS = Sql("delete_slots", "DELETE FROM slot WHERE run_id = ANY($run_ids::uuid[]) RETURNING limit_key_id")
LOCK_KEYS = Sql(
    "lock_keys",
    "SELECT limit_key_id FROM limit_key WHERE limit_key_id = ANY($key_ids::bigint[]) ORDER BY limit_key_id FOR UPDATE",
)
LOCK_MORE_KEYS = Sql(
    "lock_more_keys",
    """
SELECT limit_key_id FROM limit_key WHERE limit_key_id = ANY($key_ids::bigint[]) ORDER BY limit_key_id FOR UPDATE SKIP LOCKED""",
)
# A statement of its own, after the lock: one that waited for the lock would still see the limit as it was before the wait.
READ_LOCKED_KEYS = Sql(
    "read_locked_keys",
    """
SELECT k.limit_key_id, k.held, l.slots, l.in_force
  FROM limit_key AS k JOIN concurrency_limit AS l USING (limit_id)
 WHERE k.limit_key_id = ANY($key_ids::bigint[])""",
)
ADD_HELD = Sql(
    "add_held",
    """
UPDATE limit_key SET held = limit_key.held + u.added
  FROM unnest($key_ids::bigint[], $added::int[]) AS u (limit_key_id, added)
 WHERE limit_key.limit_key_id = u.limit_key_id""",
)
FIND_PARKED = Sql(
    "find_parked",
    """
SELECT u.limit_key_id, parked.run_id, parked.limit_key_ids
  FROM unnest($key_ids::bigint[], $runs_max::int[]) AS u (limit_key_id, runs_max)
  CROSS JOIN LATERAL (
    SELECT run_id, limit_key_ids FROM live_run
     WHERE state = 'parked' AND parked_key_id = u.limit_key_id
     ORDER BY order_at, run_id LIMIT u.runs_max
     FOR UPDATE SKIP LOCKED) AS parked""",
)
PROMOTE_RUNS = Sql(
    "promote_runs",
    """
WITH promoted AS (
  UPDATE live_run SET state = 'ready', parked_for = NULL, parked_key_id = NULL WHERE run_id = ANY($run_ids::uuid[])
)
INSERT INTO slot (run_id, limit_key_id)
SELECT * FROM unnest($slot_run_ids::uuid[], $slot_key_ids::bigint[])""",
)
MOVE_PARKED = Sql(
    "move_parked",
    """
UPDATE live_run SET parked_key_id = u.key_id
  FROM unnest($run_ids::uuid[], $key_ids::bigint[]) AS u (run_id, key_id)
 WHERE live_run.run_id = u.run_id""",
)
FIND_KEYS_WITH_WAITERS = Sql(
    "find_keys_with_waiters",
    """
SELECT u.key_id FROM unnest($key_ids::bigint[]) AS u (key_id)
 WHERE EXISTS (SELECT FROM live_run WHERE state = 'parked' AND parked_key_id = u.key_id)""",
)
OWE_PROMOTIONS = Sql(
    "owe_promotions",
    "INSERT INTO promotion (limit_key_id) SELECT unnest($key_ids::bigint[]) ON CONFLICT DO NOTHING",
)


async def release_slots(conn: Connection, run_ids: Sequence[UUID]) -> tuple[bool, bool]:
    """Release every slot of these runs; whether a run became due, and whether a promotion is owed."""
    if not run_ids:
        return False, False
    rows = await conn.fetch(DELETE_SLOTS, run_ids=list(run_ids))
    if not rows:
        return False, False
    released = Counter(row["limit_key_id"] for row in rows)
    keys = await lock_keys(conn, released)
    await add_held(conn, {key_id: -count for key_id, count in released.items()})
    for key_id, count in released.items():
        keys[key_id].held -= count
    return await promote(conn, keys)


class LockedKey:
    """A key under its row lock: how many slots are held, and how many there may be (None: no limit in force)."""

    __slots__ = ("held", "key_id", "slots")

    def __init__(self, row: Any) -> None:
        self.key_id: int = row["limit_key_id"]
        self.held: int = row["held"]
        self.slots: int | None = row["slots"] if row["in_force"] else None

    @property
    def free(self) -> int | None:
        """Free slots; negative after the limit was lowered, None where there is no limit."""
        return None if self.slots is None else self.slots - self.held


async def lock_keys(conn: Connection, key_ids: Iterable[int]) -> dict[int, LockedKey]:
    """Lock keys in id order."""
    return await _read_locked(conn, await conn.fetch(LOCK_KEYS, key_ids=sorted(key_ids)))


async def _read_locked(conn: Connection, locked: Sequence[Any]) -> dict[int, LockedKey]:
    rows = await conn.fetch(READ_LOCKED_KEYS, key_ids=[row["limit_key_id"] for row in locked])
    return {row["limit_key_id"]: LockedKey(row) for row in rows}


async def add_held(conn: Connection, added: dict[int, int]) -> None:
    """Change the held counts of locked keys."""
    if added:
        await conn.execute(ADD_HELD, key_ids=list(added), added=list(added.values()))


async def promote(conn: Connection, keys: dict[int, LockedKey]) -> tuple[bool, bool]:
    """Give the free slots of these locked keys to the runs parked at them, each run with all the slots that it needs.

    Whether a run became due, and whether a promotion is owed.
    """
    open_keys = {key_id: _promotions(key) for key_id, key in keys.items() if _promotions(key) > 0}
    if not open_keys:
        return False, False
    candidates = await conn.fetch(FIND_PARKED, key_ids=list(open_keys), runs_max=list(open_keys.values()))
    if not candidates:
        return False, await _owe_where_waited(conn, list(open_keys))
    others = {key_id for row in candidates for key_id in row["limit_key_ids"]} - set(keys)
    known = dict(keys)
    if others:
        # Not in id order any more, so without waiting: a key that is locked elsewhere leaves its run for the owed promotion.
        known |= await _read_locked(conn, await conn.fetch(LOCK_MORE_KEYS, key_ids=sorted(others)))
    promoted: list[UUID] = []
    slots: list[tuple[UUID, int]] = []
    moved: list[tuple[UUID, int]] = []
    for row in candidates:
        needed: list[int] = row["limit_key_ids"]
        if any(key_id not in known for key_id in needed):
            continue
        full = next((key_id for key_id in needed if (free := known[key_id].free) is not None and free <= 0), None)
        if full is not None:
            if full != row["limit_key_id"]:
                moved.append((row["run_id"], full))
            continue
        for key_id in needed:
            known[key_id].held += 1
            slots.append((row["run_id"], key_id))
        promoted.append(row["run_id"])
    if promoted:
        await conn.execute(
            PROMOTE_RUNS,
            run_ids=promoted,
            slot_run_ids=[run_id for run_id, _ in slots],
            slot_key_ids=[key_id for _, key_id in slots],
        )
        await add_held(conn, dict(Counter(key_id for _, key_id in slots)))
    if moved:
        await conn.execute(MOVE_PARKED, run_ids=[run for run, _ in moved], key_ids=[key for _, key in moved])
    still_open = [key_id for key_id in open_keys if (free := known[key_id].free) is None or free > 0]
    return bool(promoted), await _owe_where_waited(conn, still_open)


async def _owe_where_waited(conn: Connection, key_ids: list[int]) -> bool:
    """A free slot with waiters that this transaction could not serve is owed."""
    if not key_ids:
        return False
    rows = await conn.fetch(FIND_KEYS_WITH_WAITERS, key_ids=key_ids)
    if rows:
        await conn.execute(OWE_PROMOTIONS, key_ids=[row["key_id"] for row in rows])
    return bool(rows)


def _promotions(key: LockedKey) -> int:
    return PROMOTIONS_PER_KEY_MAX if key.free is None else min(key.free, PROMOTIONS_PER_KEY_MAX)
