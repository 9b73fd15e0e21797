"""Decides for each new event which functions it starts, and finds the keys of their concurrency limits.

It evaluates conditions and concurrency keys once, here, so that a claim only compares numbers. It decides by what the process knows of
the workspace; whoever writes the decisions sees to it that this was up to date.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import msgspec

from engine.core.expression import KEY_CHARACTERS_MAX, is_true, key_text
from engine.store.function_cache import KnownFunction, KnownTrigger, KnownWorkspace
from engine.store.sql import Connection, Sql

if TYPE_CHECKING:
    from engine.store.append_events import NewEvent

READ_LIMIT_KEYS = Sql(
    "read_limit_keys",
    """
SELECT k.limit_id, k.key_hash, k.limit_key_id
  FROM limit_key AS k JOIN unnest($limit_ids::int[], $key_hashes::bytea[]) AS u (limit_id, key_hash) USING (limit_id, key_hash)""",
)
# Sorted, so that two transactions insert in one order.
INSERT_LIMIT_KEYS = Sql(
    "insert_limit_keys",
    """
INSERT INTO limit_key (limit_id, key_hash, key_text)
SELECT limit_id, key_hash, key_text
  FROM unnest($limit_ids::int[], $key_hashes::bytea[], $key_texts::text[]) AS u (limit_id, key_hash, key_text)
 ORDER BY limit_id, key_hash
ON CONFLICT DO NOTHING""",
)

# (limit id, hash of the key, the key's text as far as it is kept)
LimitKey = tuple[int, bytes, str]


class Decision(msgspec.Struct, frozen=True, gc=False):
    """What one function does with the event at this place of its group: start a run with these limit keys, or skip it for a reason."""

    place: int
    function: KnownFunction
    skipped_because: str | None = None
    keys: tuple[LimitKey, ...] = ()


def decide_runs(events: Sequence[NewEvent], known: Mapping[int, KnownWorkspace]) -> list[Decision]:
    """A decision for every event and function that it triggers, in the order of the events."""
    decisions: list[Decision] = []
    for place, event in enumerate(events):
        workspace = known[event.workspace_id]
        if event.only_function_id is not None:
            function = workspace.functions[event.only_function_id]
            decisions.append(Decision(place, function, None, _keys(function, event, {})))
            continue
        mapping: dict[str, Any] = {}
        for trigger in workspace.triggers.get(event.name, ()):
            decisions.append(_decide(place, event, trigger, mapping))
    return decisions


async def find_limit_keys(conn: Connection, decisions: Iterable[Decision]) -> tuple[dict[tuple[int, bytes], int], list[LimitKey]]:
    """The ids of the decisions' limit keys by (limit id, hash), and the keys that are new, in order. It locks nothing."""
    keys = {key for decision in decisions for key in decision.keys}
    if not keys:
        return {}, []
    ordered = sorted(keys)
    rows = await conn.fetch(READ_LIMIT_KEYS, limit_ids=[key[0] for key in ordered], key_hashes=[key[1] for key in ordered])
    found = {(row["limit_id"], row["key_hash"]): row["limit_key_id"] for row in rows}
    return found, [key for key in ordered if (key[0], key[1]) not in found]


async def insert_limit_keys(conn: Connection, keys: Sequence[LimitKey]) -> None:
    """Make new limit keys. The event ids of the transaction must be claimed before: that is the order of locks."""
    await conn.execute(
        INSERT_LIMIT_KEYS,
        limit_ids=[key[0] for key in keys],
        key_hashes=[key[1] for key in keys],
        key_texts=[key[2] for key in keys],
    )


def _decide(place: int, event: NewEvent, trigger: KnownTrigger, mapping: dict[str, Any]) -> Decision:
    """The first of the function's triggers whose condition holds starts it."""
    function = trigger.function
    if None not in trigger.conditions and not any(
        is_true(c, _mapping(event, mapping)) for c in trigger.conditions if c is not None
    ):
        conditions = " and ".join(map(repr, trigger.conditions))
        return Decision(place, function, f"not true: {conditions}")
    return Decision(place, function, None, _keys(function, event, mapping))


def _keys(function: KnownFunction, event: NewEvent, mapping: dict[str, Any]) -> tuple[LimitKey, ...]:
    if not function.limits:
        return ()
    keys: list[LimitKey] = []
    for limit_id, expression in function.limits:
        text = key_text(expression or None, _mapping(event, mapping))
        keys.append((limit_id, blake2b(text.encode(), digest_size=16).digest(), text[:KEY_CHARACTERS_MAX]))
    return tuple(keys)


def _mapping(event: NewEvent, mapping: dict[str, Any]) -> dict[str, Any]:
    """The event as expressions see it; decoded at the first question."""
    if not mapping:
        mapping.update(id=event.visible_id, name=event.name, data=msgspec.json.decode(event.data))
    return mapping
