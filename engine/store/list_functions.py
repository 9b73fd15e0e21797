"""Lists the functions of a workspace: configuration, triggers, limits in force, and why their lanes are held, if they are."""

from __future__ import annotations

from datetime import datetime

import msgspec
from msgspec import Raw

from engine.store.sql import Connection, Sql

LIST_FUNCTIONS = Sql(
    "list_functions",
    """
SELECT function.function_id, function.name, function.config, function.config_version, function.removed_at,
       lane_hold.cause, lane_hold.detail,
       CASE WHEN isfinite(lane_hold.held_until) THEN lane_hold.held_until END AS held_until
  FROM function
  LEFT JOIN lane_hold ON lane_hold.function_id = function.function_id AND lane_hold.held_until > now()
 WHERE function.workspace_id = $workspace_id
 ORDER BY function.removed_at IS NOT NULL, function.name""",
)
LIST_LIMITS = Sql(
    "list_limits",
    """
SELECT l.function_id, l.key_expression, l.slots
  FROM concurrency_limit AS l JOIN function USING (function_id)
 WHERE function.workspace_id = $workspace_id AND l.in_force
 ORDER BY l.limit_id""",
)
LIST_TRIGGERS = Sql(
    "list_triggers",
    """
SELECT function_id, event_name, condition
  FROM trigger WHERE workspace_id = $workspace_id ORDER BY function_id, ordinal""",
)


class TriggerEntry(msgspec.Struct, frozen=True, rename={"condition": "if"}):
    """An event that starts the function, if its condition holds."""

    event: str
    condition: str | None


class LimitEntry(msgspec.Struct, frozen=True):
    """A concurrency limit in force. No key: one for the whole function."""

    limit: int
    key: str | None


class HoldEntry(msgspec.Struct, frozen=True):
    """Why no run of the function is started now. Without `until`: until the cause is gone."""

    cause: str
    detail: str
    until: datetime | None


class FunctionEntry(msgspec.Struct, frozen=True):
    """A function as the engine has it. `config` is its part of the manifest."""

    function: str
    config: Raw
    config_version: int
    triggers: list[TriggerEntry]
    limits: list[LimitEntry]
    hold: HoldEntry | None
    removed_at: datetime | None


async def list_functions(conn: Connection, workspace_id: int) -> list[FunctionEntry]:
    """The functions by name, the removed ones last."""
    rows = await conn.fetch(LIST_FUNCTIONS, workspace_id=workspace_id)
    limits: dict[int, list[LimitEntry]] = {}
    for row in await conn.fetch(LIST_LIMITS, workspace_id=workspace_id):
        limits.setdefault(row["function_id"], []).append(LimitEntry(row["slots"], row["key_expression"] or None))
    triggers: dict[int, list[TriggerEntry]] = {}
    for row in await conn.fetch(LIST_TRIGGERS, workspace_id=workspace_id):
        triggers.setdefault(row["function_id"], []).append(TriggerEntry(row["event_name"], row["condition"]))
    return [
        FunctionEntry(
            row["name"],
            Raw(row["config"].encode()),
            row["config_version"],
            triggers.get(row["function_id"], []),
            limits.get(row["function_id"], []),
            HoldEntry(row["cause"], row["detail"], row["held_until"]) if row["cause"] is not None else None,
            row["removed_at"],
        )
        for row in rows
    ]
