"""Finds a function of a workspace by the id that its app gave it."""

from __future__ import annotations

from dataclasses import dataclass

from engine.store.sql import Connection, Sql

FIND_FUNCTION = Sql(
    "find_function",
    """
SELECT function_id, removed_at IS NOT NULL AS is_removed
  FROM function WHERE workspace_id = $workspace_id AND name = $name""",
)


@dataclass(frozen=True, slots=True)
class FoundFunction:
    """`is_removed`: its app does not have it any more."""

    function_id: int
    is_removed: bool


async def find_function(conn: Connection, workspace_id: int, name: str) -> FoundFunction | None:
    """The function, or None when the workspace has never had it."""
    row = await conn.fetchrow(FIND_FUNCTION, workspace_id=workspace_id, name=name)
    return None if row is None else FoundFunction(**row)
