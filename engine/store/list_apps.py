"""Lists the workspaces with the app that serves each, if one was synced."""

from __future__ import annotations

from datetime import datetime

import msgspec

from engine.store.sql import Connection, Sql

LIST_APPS = Sql(
    "list_apps",
    """
SELECT workspace.app, workspace.env, app.serve_url, app.deployment, app.synced_at,
       app.manifest::json -> 'sdk' ->> 'name' AS sdk_name, app.manifest::json -> 'sdk' ->> 'version' AS sdk_version,
       (SELECT count(*) FROM function AS f
         WHERE f.workspace_id = workspace.workspace_id AND f.removed_at IS NULL)::int AS functions
  FROM workspace LEFT JOIN app USING (workspace_id)
 ORDER BY workspace.app, workspace.env""",
)


class AppEntry(msgspec.Struct, frozen=True):
    """A workspace. The fields of the app are None until one was synced."""

    app: str
    env: str
    serve_url: str | None
    deployment: str | None
    synced_at: datetime | None
    sdk_name: str | None
    sdk_version: str | None
    functions: int


async def list_apps(conn: Connection) -> list[AppEntry]:
    """All workspaces, by name."""
    return [AppEntry(**row) for row in await conn.fetch(LIST_APPS)]
