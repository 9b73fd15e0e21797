"""Where the known apps are served."""

from __future__ import annotations

from engine.store.sql import Connection, Sql

LIST_APP_URLS = Sql(
    "list_app_urls",
    "SELECT workspace.app, workspace.env, app.serve_url FROM app JOIN workspace USING (workspace_id) ORDER BY workspace_id",
)


async def list_app_urls(conn: Connection) -> list[tuple[str, str, str]]:
    """(app, environment, serve URL) of every app that was synced."""
    return [(row["app"], row["env"], row["serve_url"]) for row in await conn.fetch(LIST_APP_URLS)]
