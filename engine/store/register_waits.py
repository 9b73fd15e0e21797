"""Prepares the waits for events that a report asks for: their shapes, and the earlier events that they may take at once (lookback).

The caller holds the buckets of the event names exclusively, so what is not seen here comes later and will see the wait. It writes
shapes and keys, never waits or memo entries.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import msgspec

from engine.core.expression import ExpressionRefused, check_expression, is_true
from engine.core.match import hash_of_event, hash_of_match, shape_of
from engine.core.run import EarlierEvent
from engine.store.event_json import event_json
from engine.store.sql import Connection, Sql

SHAPES_PER_NAME_MAX = 32
CANDIDATES_MAX = 1_000
BACKFILL_PAGE_EVENTS = 1_000

FIND_SHAPE = Sql(
    "find_shape",
    """
SELECT shape_id, is_ready FROM event_shape
 WHERE workspace_id = $workspace_id AND event_name = $event_name AND paths = $paths::text[]""",
)
COUNT_SHAPES = Sql(
    "count_shapes",
    "SELECT count(*) FROM event_shape WHERE workspace_id = $workspace_id AND event_name = $event_name",
)
# Lookback reaches seven days back; older events of the name need no key.
INSERT_SHAPE = Sql(
    "insert_shape",
    """
INSERT INTO event_shape (workspace_id, event_name, paths, backfill_from, backfill_to, is_ready)
SELECT $workspace_id, $event_name, $paths::text[], coalesce(min(seq) - 1, 0), coalesce(max(seq), 0), false
  FROM event
 WHERE workspace_id = $workspace_id AND name = $event_name AND received_at > now() - interval '7 days'
RETURNING shape_id""",
)
READ_BACKFILL_PAGE = Sql(
    "read_backfill_page",
    """
SELECT event.event_id, event.seq, event.data
  FROM event_shape AS shape
  JOIN event ON event.workspace_id = shape.workspace_id AND event.name = shape.event_name
 WHERE shape.shape_id = $shape_id AND event.seq > shape.backfill_from AND event.seq <= shape.backfill_to
 ORDER BY event.seq LIMIT $events_max""",
)
INSERT_BACKFILLED_KEYS = Sql(
    "insert_backfilled_keys",
    """
INSERT INTO event_key_match (shape_id, match_hash, seq, event_id)
SELECT $shape_id, * FROM unnest($match_hashes::bytea[], $seqs::bigint[], $event_ids::uuid[])
ON CONFLICT DO NOTHING""",
)
ADVANCE_BACKFILL = Sql(
    "advance_backfill",
    "UPDATE event_shape SET backfill_from = $backfill_from, is_ready = $is_ready WHERE shape_id = $shape_id",
)
FIND_EARLIER_EVENTS = Sql(
    "find_earlier_events",
    """
SELECT u.ordinal, event.event_id, event.external_id, event.name, event.data, event.received_at
  FROM unnest($run_ids::uuid[], $shape_ids::int[], $match_hashes::bytea[], $limits::int[])
       WITH ORDINALITY AS u (run_id, shape_id, match_hash, candidates_max, ordinal)
  JOIN run USING (run_id)
  CROSS JOIN LATERAL (
    SELECT k.event_id, k.seq FROM event_key_match AS k
     WHERE k.shape_id = u.shape_id AND k.match_hash = u.match_hash AND k.seq > run.event_seq
       AND NOT EXISTS (SELECT FROM taken_event AS t WHERE t.run_id = u.run_id AND t.event_id = k.event_id)
     ORDER BY k.seq LIMIT u.candidates_max) AS candidate
  JOIN event ON event.event_id = candidate.event_id
 ORDER BY u.ordinal, candidate.seq""",
)


@dataclass(frozen=True, slots=True)
class WantedWait:
    """A wait for an event that is not registered yet."""

    workspace_id: int
    run_id: UUID
    step_id: str
    event_name: str
    match: dict[str, Any] | None
    condition: str | None
    has_lookback: bool

    @property
    def paths(self) -> list[str]:
        return shape_of(self.match)

    @property
    def match_hash(self) -> bytes:
        return hash_of_match(self.match)


@dataclass(frozen=True, slots=True)
class PreparedWait:
    """Where a wait stands in the index, and the event that it takes at once, if one came before.

    `is_pending`: the shape is new and many events have to be keyed before anyone knows. `refusal`: it can not be registered.
    """

    wanted: WantedWait
    shape_id: int = 0
    is_pending: bool = False
    earlier: EarlierEvent | None = None
    refusal: str | None = None


async def prepare_waits(conn: Connection, wanted: Sequence[WantedWait]) -> list[PreparedWait]:
    """Find or make the shape of each wait and look back for it, in the order of `wanted`."""
    shapes: dict[tuple[int, str, tuple[str, ...]], tuple[int, bool] | None] = {}
    prepared: list[PreparedWait] = []
    for wait in wanted:
        if (text := _condition_refusal(wait)) is not None:
            prepared.append(PreparedWait(wait, refusal=text))
            continue
        name = (wait.workspace_id, wait.event_name, tuple(wait.paths))
        if name not in shapes:
            shapes[name] = await _find_or_make_shape(conn, wait)
        shape = shapes[name]
        if shape is None:
            text = f"Waits for {wait.event_name!r} use more than {SHAPES_PER_NAME_MAX} different sets of match paths."
            prepared.append(PreparedWait(wait, refusal=text))
        else:
            prepared.append(PreparedWait(wait, shape[0], is_pending=not shape[1] and wait.has_lookback))
    return await look_back(conn, prepared)


async def look_back(conn: Connection, prepared: Sequence[PreparedWait]) -> list[PreparedWait]:
    """Give each wait whose shape is ready the earliest event that fits it and that no other wait of its run took."""
    asking = [wait for wait in prepared if wait.wanted.has_lookback and not wait.is_pending and wait.refusal is None]
    if not asking:
        return list(prepared)
    rows = await conn.fetch(
        FIND_EARLIER_EVENTS,
        run_ids=[wait.wanted.run_id for wait in asking],
        shape_ids=[wait.shape_id for wait in asking],
        match_hashes=[wait.wanted.match_hash for wait in asking],
        # Without a condition the first is taken, unless waits of the same run take it before.
        limits=[
            CANDIDATES_MAX + 1 if wait.wanted.condition else place for wait, place in zip(asking, _places(asking), strict=True)
        ],
    )
    candidates: dict[int, list[Any]] = {}
    for row in rows:
        candidates.setdefault(row["ordinal"] - 1, []).append(row)
    taken: set[tuple[UUID, UUID]] = set()
    found: dict[int, PreparedWait] = {}
    for index, wait in enumerate(asking):
        found[id(wait)] = _choose(wait, candidates.get(index, []), taken)
    return [found.get(id(wait), wait) for wait in prepared]


def _places(asking: Sequence[PreparedWait]) -> list[int]:
    """The place of each wait among those of its run, from 1: so many events suffice for it."""
    counts: Counter[UUID] = Counter()
    places: list[int] = []
    for wait in asking:
        counts[wait.wanted.run_id] += 1
        places.append(counts[wait.wanted.run_id])
    return places


async def backfill_page(conn: Connection, shape_id: int, paths: Sequence[str]) -> bool:
    """Key one page of earlier events by a new shape; whether that was the last."""
    rows = await conn.fetch(READ_BACKFILL_PAGE, shape_id=shape_id, events_max=BACKFILL_PAGE_EVENTS)
    is_ready = len(rows) < BACKFILL_PAGE_EVENTS
    if rows:
        await conn.execute(
            INSERT_BACKFILLED_KEYS,
            shape_id=shape_id,
            match_hashes=[hash_of_event(msgspec.json.decode(row["data"]), paths) for row in rows],
            seqs=[row["seq"] for row in rows],
            event_ids=[row["event_id"] for row in rows],
        )
    await conn.execute(ADVANCE_BACKFILL, shape_id=shape_id, backfill_from=rows[-1]["seq"] if rows else 0, is_ready=is_ready)
    return is_ready


def _condition_refusal(wait: WantedWait) -> str | None:
    """Why the condition can not be used. One that was registered all the same would fail every event of the name."""
    try:
        if wait.condition is not None:
            check_expression(wait.condition)
    except ExpressionRefused as refused:
        return f"The condition of step {wait.step_id!r} can not be used: {refused}"
    return None


async def _find_or_make_shape(conn: Connection, wait: WantedWait) -> tuple[int, bool] | None:
    """The shape and whether it is ready; None where the name has too many."""
    name = {"workspace_id": wait.workspace_id, "event_name": wait.event_name}
    row = await conn.fetchrow(FIND_SHAPE, **name, paths=wait.paths)
    if row is not None:
        return row["shape_id"], row["is_ready"]
    if await conn.fetchval(COUNT_SHAPES, **name) >= SHAPES_PER_NAME_MAX:
        return None
    shape_id = await conn.fetchval(INSERT_SHAPE, **name, paths=wait.paths)
    # A name with few events, which is nearly every one, is keyed at once; the others are left to the backfill service.
    return shape_id, await backfill_page(conn, shape_id, wait.paths)


def _choose(wait: PreparedWait, candidates: list[Any], taken: set[tuple[UUID, UUID]]) -> PreparedWait:
    wanted = wait.wanted
    for row in candidates[:CANDIDATES_MAX]:
        if (wanted.run_id, row["event_id"]) in taken:
            continue
        if wanted.condition is not None:
            event = {"id": row["external_id"], "name": row["name"], "data": msgspec.json.decode(row["data"])}
            if not is_true(wanted.condition, event):
                continue
        taken.add((wanted.run_id, row["event_id"]))
        payload = event_json(row["external_id"], row["name"], row["data"], row["received_at"])
        return PreparedWait(wanted, wait.shape_id, earlier=EarlierEvent(row["event_id"], payload))
    if len(candidates) > CANDIDATES_MAX:
        text = (
            f"More than {CANDIDATES_MAX:,} earlier {wanted.event_name!r} events match step {wanted.step_id!r}, and its condition "
            f"is false for the first {CANDIDATES_MAX:,}. Move what the condition compares into `match`, or set lookback to false."
        )
        return PreparedWait(wanted, wait.shape_id, refusal=text)
    return wait
