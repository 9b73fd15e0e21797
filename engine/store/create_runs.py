"""Decides for each new event which functions it starts, and writes the decisions and the runs.

It evaluates conditions and concurrency keys once, here, so that a claim only compares numbers. Part of the transaction that takes the
events in: first the decisions, whose number the event's row keeps, then the rows.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec

from engine.core.expression import KEY_CHARACTERS_MAX, is_true, key_text
from engine.core.ids import uuid7
from engine.store.sql import Connection, Sql

if TYPE_CHECKING:
    from engine.store.append_events import NewEvent, StoredEvent

READ_TRIGGERS = Sql(
    "read_triggers",
    """
SELECT trigger.workspace_id, trigger.event_name, trigger.function_id, trigger.condition,
       ARRAY(SELECT l.limit_id FROM concurrency_limit AS l
              WHERE l.function_id = trigger.function_id AND l.in_force ORDER BY l.limit_id) AS limit_ids,
       ARRAY(SELECT l.key_expression FROM concurrency_limit AS l
              WHERE l.function_id = trigger.function_id AND l.in_force ORDER BY l.limit_id) AS key_expressions
  FROM trigger
  JOIN function USING (function_id)
  JOIN (SELECT DISTINCT * FROM unnest($workspace_ids::int[], $names::text[]) AS u (workspace_id, event_name)) AS wanted
       ON wanted.workspace_id = trigger.workspace_id AND wanted.event_name = trigger.event_name
 WHERE function.removed_at IS NULL
 ORDER BY trigger.function_id, trigger.ordinal""",
)

READ_STARTED_FUNCTIONS = Sql(
    "read_started_functions",
    """
SELECT function.workspace_id, function.function_id,
       ARRAY(SELECT l.limit_id FROM concurrency_limit AS l
              WHERE l.function_id = function.function_id AND l.in_force ORDER BY l.limit_id) AS limit_ids,
       ARRAY(SELECT l.key_expression FROM concurrency_limit AS l
              WHERE l.function_id = function.function_id AND l.in_force ORDER BY l.limit_id) AS key_expressions
  FROM function WHERE function.function_id = ANY($function_ids::int[])""",
)

# Reading first keeps the usual case, known keys, free of writes; sorted, so that two transactions insert in one order.
READ_LIMIT_KEYS = Sql(
    "read_limit_keys",
    """
SELECT k.limit_id, k.key_hash, k.limit_key_id
  FROM limit_key AS k JOIN unnest($limit_ids::int[], $key_hashes::bytea[]) AS u (limit_id, key_hash) USING (limit_id, key_hash)""",
)
INSERT_LIMIT_KEYS = Sql(
    "insert_limit_keys",
    """
INSERT INTO limit_key (limit_id, key_hash, key_text)
SELECT limit_id, key_hash, key_text
  FROM unnest($limit_ids::int[], $key_hashes::bytea[], $key_texts::text[]) AS u (limit_id, key_hash, key_text)
 ORDER BY limit_id, key_hash
ON CONFLICT DO NOTHING""",
)

CREATE_RUNS = Sql(
    "create_runs",
    """
WITH decided AS (
  SELECT * FROM unnest($event_ids::uuid[], $function_ids::int[], $decisions::text[], $reasons::text[], $run_ids::uuid[],
                       $workspace_ids::int[], $event_seqs::bigint[], $limit_keys::text[])
           AS u (event_id, function_id, decision, reason, run_id, workspace_id, event_seq, limit_keys)
), noted AS (
  INSERT INTO event_decision (event_id, function_id, decision, reason, run_id)
  SELECT event_id, function_id, decision, reason, run_id FROM decided
), made AS (
  INSERT INTO run (run_id, workspace_id, function_id, event_id, event_seq, created_at)
  SELECT run_id, workspace_id, function_id, event_id, event_seq, clock_timestamp() FROM decided WHERE run_id IS NOT NULL
)
INSERT INTO live_run (run_id, workspace_id, function_id, state, order_at, limit_key_ids)
SELECT run_id, workspace_id, function_id, 'ready', clock_timestamp(), limit_keys::bigint[] FROM decided WHERE run_id IS NOT NULL""",
)


@dataclass(frozen=True, slots=True)
class Decision:
    """What one function does with one event: start a run with these concurrency keys, or skip it for a reason."""

    event: NewEvent
    function_id: int
    skipped_because: str | None = None
    keys: tuple[tuple[int, bytes, str], ...] = ()


async def decide_runs(conn: Connection, events: Sequence[NewEvent]) -> list[Decision]:
    """A decision for every event and function that it triggers."""
    triggered = [event for event in events if event.only_function_id is None]
    triggers: dict[tuple[int, str], list[Any]] = {}
    if triggered:
        for row in await conn.fetch(
            READ_TRIGGERS,
            workspace_ids=[event.workspace_id for event in triggered],
            names=[event.name for event in triggered],
        ):
            triggers.setdefault((row["workspace_id"], row["event_name"]), []).append(row)
    started: dict[int, Any] = {}
    if function_ids := {event.only_function_id for event in events} - {None}:
        rows = await conn.fetch(READ_STARTED_FUNCTIONS, function_ids=list(function_ids))
        started = {row["function_id"]: row for row in rows}
    decisions: list[Decision] = []
    for event in events:
        if event.only_function_id is not None:
            function = started[event.only_function_id]
            mapping = _event_mapping(event) if function["limit_ids"] else {}
            decisions.append(Decision(event, event.only_function_id, keys=_keys(function, mapping)))
        else:
            decisions += _triggered(event, triggers.get((event.workspace_id, event.name), []))
    return decisions


async def write_runs(conn: Connection, decisions: Sequence[Decision], stored_events: Sequence[StoredEvent]) -> int:
    """Write the decisions and the runs that start; how many started."""
    if not decisions:
        return 0
    stored_of = {stored.event.event_id: stored for stored in stored_events}
    key_ids = await _limit_key_ids(conn, {key for decision in decisions for key in decision.keys})
    run_ids = [None if decision.skipped_because else _new_run_id(stored_of[decision.event.event_id]) for decision in decisions]
    await conn.execute(
        CREATE_RUNS,
        event_ids=[decision.event.event_id for decision in decisions],
        function_ids=[decision.function_id for decision in decisions],
        decisions=["run" if run_id else "skipped" for run_id in run_ids],
        reasons=[decision.skipped_because for decision in decisions],
        run_ids=run_ids,
        workspace_ids=[decision.event.workspace_id for decision in decisions],
        event_seqs=[stored_of[decision.event.event_id].seq for decision in decisions],
        limit_keys=[_array_text([key_ids[limit_id, key_hash] for limit_id, key_hash, _ in d.keys]) for d in decisions],
    )
    return sum(run_id is not None for run_id in run_ids)


def _triggered(event: NewEvent, triggers: list[Any]) -> list[Decision]:
    """One decision per function: the first of its triggers whose condition holds starts it."""
    needs_event = any(trigger["condition"] or trigger["limit_ids"] for trigger in triggers)
    mapping = _event_mapping(event) if needs_event else {}
    by_function: dict[int, list[Any]] = {}
    for trigger in triggers:
        by_function.setdefault(trigger["function_id"], []).append(trigger)
    decisions: list[Decision] = []
    for function_id, its_triggers in by_function.items():
        fits = next((t for t in its_triggers if t["condition"] is None or is_true(t["condition"], mapping)), None)
        if fits is None:
            conditions = " and ".join(repr(trigger["condition"]) for trigger in its_triggers)
            decisions.append(Decision(event, function_id, skipped_because=f"not true: {conditions}"))
        else:
            decisions.append(Decision(event, function_id, keys=_keys(fits, mapping)))
    return decisions


def _keys(limits: Any, event: dict[str, Any]) -> tuple[tuple[int, bytes, str], ...]:
    keys: list[tuple[int, bytes, str]] = []
    for limit_id, expression in zip(limits["limit_ids"], limits["key_expressions"], strict=True):
        text = key_text(expression or None, event)
        keys.append((limit_id, blake2b(text.encode(), digest_size=16).digest(), text[:KEY_CHARACTERS_MAX]))
    return tuple(keys)


async def _limit_key_ids(conn: Connection, keys: set[tuple[int, bytes, str]]) -> dict[tuple[int, bytes], int]:
    if not keys:
        return {}
    ordered = sorted(keys)
    wanted = {"limit_ids": [key[0] for key in ordered], "key_hashes": [key[1] for key in ordered]}
    found = {
        (row["limit_id"], bytes(row["key_hash"])): row["limit_key_id"] for row in await conn.fetch(READ_LIMIT_KEYS, **wanted)
    }
    missing = [key for key in ordered if (key[0], key[1]) not in found]
    if missing:
        await conn.execute(
            INSERT_LIMIT_KEYS,
            limit_ids=[key[0] for key in missing],
            key_hashes=[key[1] for key in missing],
            key_texts=[key[2] for key in missing],
        )
        rows = await conn.fetch(READ_LIMIT_KEYS, **wanted)
        found = {(row["limit_id"], bytes(row["key_hash"])): row["limit_key_id"] for row in rows}
    return found


def _event_mapping(event: NewEvent) -> dict[str, Any]:
    return {"id": event.visible_id, "name": event.name, "data": msgspec.json.decode(event.data)}


def _new_run_id(stored: StoredEvent) -> UUID:
    """Sorts by the database's clock, so that runs of two engines sort as they came."""
    return uuid7(int(stored.received_at.timestamp() * 1000), os.urandom(10))


def _array_text(numbers: list[int]) -> str | None:
    """An array literal: unnest can not take an array of arrays of different lengths."""
    return "{" + ",".join(map(str, numbers)) + "}" if numbers else None
