"""Workspaces: an app in an environment, with the number by which every other row names it.

A workspace is made by whoever may make one (a verified app, an operator) and never deleted.
"""

from __future__ import annotations

from engine.store.sql import Connection, Sql

FIND_WORKSPACE = Sql("find_workspace", "SELECT workspace_id FROM workspace WHERE app = $app AND env = $env")

CREATE_WORKSPACE = Sql(
    "create_workspace",
    "INSERT INTO workspace (app, env) VALUES ($app, $env) ON CONFLICT (app, env) DO NOTHING RETURNING workspace_id",
)


async def find_or_create_workspace(conn: Connection, app: str, env: str) -> int:
    """The id of this workspace, which is made if it is new. The caller has checked both names and the right to do so."""
    found = await find_workspace(conn, app, env)
    if found is not None:
        return found
    made: int | None = await conn.fetchval(CREATE_WORKSPACE, app=app, env=env)
    if made is not None:
        return made
    # Another transaction made it between the two statements; this one waited for it and sees it now.
    other = await find_workspace(conn, app, env)
    assert other is not None
    return other


async def find_workspace(conn: Connection, app: str, env: str) -> int | None:
    """The id of this workspace, or None."""
    found: int | None = await conn.fetchval(FIND_WORKSPACE, app=app, env=env)
    return found
