"""Finds the open waits that new events end, by index, and ends them. Part of the transaction that takes the events in.

An event ends at most one wait of a run, the earliest registered one that it fits; a wait takes the earliest event.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec

from engine.core.expression import is_true
from engine.core.match import hash_of_event
from engine.store.resolve_waits import ResolvedWait, resolve_waits
from engine.store.sql import Connection, Sql

if TYPE_CHECKING:
    from engine.store.append_events import NewEvent, StoredEvent

READ_SHAPES = Sql(
    "read_shapes",
    """
SELECT shape.shape_id, shape.workspace_id, shape.event_name, shape.paths
  FROM event_shape AS shape
  JOIN (SELECT DISTINCT * FROM unnest($workspace_ids::int[], $names::text[]) AS u (workspace_id, event_name)) AS wanted
       USING (workspace_id, event_name)""",
)

INSERT_EVENT_KEYS = Sql(
    "insert_event_keys",
    """
INSERT INTO event_key_match (shape_id, match_hash, seq, event_id)
SELECT * FROM unnest($shape_ids::int[], $match_hashes::bytea[], $seqs::bigint[], $event_ids::uuid[])
ON CONFLICT DO NOTHING""",
)

# A pending wait is left alone: an older event may be the one it must take, and the backfill of its shape will say.
FIND_WAITING_RUNS = Sql(
    "find_waiting_runs",
    """
SELECT DISTINCT wait.run_id
  FROM unnest($shape_ids::int[], $match_hashes::bytea[]) AS u (shape_id, match_hash)
  JOIN wait ON wait.shape_id = u.shape_id AND wait.match_hash = u.match_hash
 WHERE NOT wait.is_pending""",
)

LOCK_RUNS = Sql(
    "lock_runs",
    "SELECT run_id FROM live_run WHERE run_id = ANY($run_ids::uuid[]) AND state <> 'cancelled' ORDER BY run_id FOR UPDATE",
)

READ_MATCHED_WAITS = Sql(
    "read_matched_waits",
    """
SELECT u.event_index, wait.wait_id, wait.run_id, wait.step_id, wait.condition, wait.registered_at
  FROM unnest($shape_ids::int[], $match_hashes::bytea[], $event_indexes::int[]) AS u (shape_id, match_hash, event_index)
  JOIN wait ON wait.shape_id = u.shape_id AND wait.match_hash = u.match_hash
 WHERE NOT wait.is_pending AND wait.run_id = ANY($run_ids::uuid[])
 ORDER BY u.event_index, wait.wait_id""",
)


async def match_waits(conn: Connection, stored_events: Sequence[StoredEvent]) -> list[UUID]:
    """Key these events by the shapes of their names and end the waits that they fit; the runs that became ready."""
    keys = await _keys(conn, [stored.event for stored in stored_events])
    if not keys:
        return []
    await conn.execute(
        INSERT_EVENT_KEYS,
        shape_ids=[shape_id for shape_id, _, _ in keys],
        match_hashes=[match_hash for _, match_hash, _ in keys],
        seqs=[stored_events[index].seq for _, _, index in keys],
        event_ids=[stored_events[index].event.event_id for _, _, index in keys],
    )
    shape_ids = [shape_id for shape_id, _, _ in keys]
    match_hashes = [match_hash for _, match_hash, _ in keys]
    rows = await conn.fetch(FIND_WAITING_RUNS, shape_ids=shape_ids, match_hashes=match_hashes)
    if not rows:
        return []
    # The runs first, then their waits again: between the look and the lock a timer may have ended one.
    locked = await conn.fetch(LOCK_RUNS, run_ids=[row["run_id"] for row in rows])
    waits = await conn.fetch(
        READ_MATCHED_WAITS,
        shape_ids=shape_ids,
        match_hashes=match_hashes,
        event_indexes=[index for _, _, index in keys],
        run_ids=[row["run_id"] for row in locked],
    )
    return await resolve_waits(conn, _assign(stored_events, waits))


async def find_waiting_runs(conn: Connection, events: Sequence[NewEvent]) -> list[UUID]:
    """The runs that these events may wake. The caller holds the buckets, so none is added until it writes the events."""
    keys = await _keys(conn, events)
    if not keys:
        return []
    rows = await conn.fetch(
        FIND_WAITING_RUNS,
        shape_ids=[shape_id for shape_id, _, _ in keys],
        match_hashes=[match_hash for _, match_hash, _ in keys],
    )
    return [row["run_id"] for row in rows]


async def _keys(conn: Connection, events: Sequence[NewEvent]) -> list[tuple[int, bytes, int]]:
    """The (shape, hash, index of the event) of every event under every shape of its name."""
    rows = await conn.fetch(
        READ_SHAPES,
        workspace_ids=[event.workspace_id for event in events],
        names=[event.name for event in events],
    )
    shapes: dict[tuple[int, str], list[Any]] = {}
    for row in rows:
        shapes.setdefault((row["workspace_id"], row["event_name"]), []).append(row)
    keys: list[tuple[int, bytes, int]] = []
    for index, event in enumerate(events):
        its_shapes = shapes.get((event.workspace_id, event.name))
        if its_shapes:
            data = msgspec.json.decode(event.data)
            keys += [(shape["shape_id"], hash_of_event(data, shape["paths"]), index) for shape in its_shapes]
    return keys


def _assign(stored_events: Sequence[StoredEvent], waits: Sequence[Any]) -> list[ResolvedWait]:
    ended_waits: set[int] = set()
    takers: set[tuple[int, UUID]] = set()
    resolved: list[ResolvedWait] = []
    for wait in waits:
        index = wait["event_index"]
        stored = stored_events[index]
        if wait["wait_id"] in ended_waits or (index, wait["run_id"]) in takers:
            continue
        if wait["condition"] is not None:
            data = msgspec.json.decode(stored.event.data)
            event = {"id": stored.visible_id, "name": stored.event.name, "data": data}
            if not is_true(wait["condition"], event):
                continue
        ended_waits.add(wait["wait_id"])
        takers.add((index, wait["run_id"]))
        resolved.append(
            ResolvedWait(
                wait["run_id"],
                wait["step_id"],
                "wait_for_event",
                stored.payload,
                stored.event.event_id,
                wait["registered_at"],
            )
        )
    return resolved
