"""Reads the functions, triggers, limits and offers of workspaces into the cache of this process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from engine.store.app_offer import read_offer
from engine.store.function_cache import KnownFunction, KnownTrigger, KnownWorkspace
from engine.store.sql import Connection, Sql
from protocol.manifest import FunctionConfig

# Read before the functions: were they changed in between, their version would be the older one, and whoever compares it looks again.
READ_WORKSPACE_VERSIONS = Sql(
    "read_workspace_versions",
    """
SELECT workspace.workspace_id, workspace.sync_version, workspace.app, workspace.env, app.serve_url, app.manifest
  FROM workspace LEFT JOIN app USING (workspace_id)
 WHERE workspace.workspace_id = ANY($workspace_ids::int[])""",
)
READ_KNOWN_FUNCTIONS = Sql(
    "read_known_functions",
    """
SELECT function.workspace_id, function.function_id, function.name, function.config,
       ARRAY(SELECT l.limit_id FROM concurrency_limit AS l
              WHERE l.function_id = function.function_id AND l.in_force ORDER BY l.limit_id) AS limit_ids,
       ARRAY(SELECT l.key_expression FROM concurrency_limit AS l
              WHERE l.function_id = function.function_id AND l.in_force ORDER BY l.limit_id) AS key_expressions
  FROM function WHERE function.workspace_id = ANY($workspace_ids::int[])""",
)
READ_KNOWN_TRIGGERS = Sql(
    "read_known_triggers",
    """
SELECT trigger.workspace_id, trigger.event_name, trigger.function_id, trigger.condition
  FROM trigger JOIN function USING (function_id)
 WHERE trigger.workspace_id = ANY($workspace_ids::int[]) AND function.removed_at IS NULL
 ORDER BY trigger.workspace_id, trigger.event_name, trigger.function_id, trigger.ordinal""",
)


async def know_workspaces(conn: Connection, versions: Mapping[int, int | None]) -> dict[int, KnownWorkspace]:
    """The workspaces at these versions or later ones; None: at whatever version is known, read only if none is."""
    known: dict[int, KnownWorkspace] = {}
    for workspace_id, version in versions.items():
        workspace = conn.functions.get(workspace_id)
        if workspace is not None and version in (None, workspace.sync_version):
            known[workspace_id] = workspace
    if missing := [workspace_id for workspace_id in versions if workspace_id not in known]:
        for workspace in await _read(conn, missing):
            conn.functions.put(workspace)
            known[workspace.workspace_id] = workspace
    return known


async def _read(conn: Connection, workspace_ids: list[int]) -> list[KnownWorkspace]:
    rows = await conn.fetch(READ_WORKSPACE_VERSIONS, workspace_ids=workspace_ids)
    functions: dict[int, dict[int, KnownFunction]] = {workspace_id: {} for workspace_id in workspace_ids}
    for row in await conn.fetch(READ_KNOWN_FUNCTIONS, workspace_ids=workspace_ids):
        functions[row["workspace_id"]][row["function_id"]] = _function(row)
    conditions: dict[int, dict[str, dict[int, list[str | None]]]] = {workspace_id: {} for workspace_id in workspace_ids}
    for row in await conn.fetch(READ_KNOWN_TRIGGERS, workspace_ids=workspace_ids):
        of_name = conditions[row["workspace_id"]].setdefault(row["event_name"], {})
        of_name.setdefault(row["function_id"], []).append(row["condition"])
    return [_workspace(row, functions[row["workspace_id"]], conditions[row["workspace_id"]]) for row in rows]


def _function(row: Any) -> KnownFunction:
    config = msgspec.json.decode(row["config"], type=FunctionConfig)
    limits = tuple(zip(row["limit_ids"], row["key_expressions"], strict=True))
    return KnownFunction(row["function_id"], row["name"], config, limits)


def _workspace(
    row: Any, functions: dict[int, KnownFunction], conditions: dict[str, dict[int, list[str | None]]]
) -> KnownWorkspace:
    triggers = {
        # A function that was made between the two looks is not known yet; its version is newer than the one read first.
        name: tuple(KnownTrigger(functions[f], tuple(texts)) for f, texts in by_function.items() if f in functions)
        for name, by_function in conditions.items()
    }
    offer = None if row["serve_url"] is None else read_offer(row["serve_url"], row["manifest"])
    return KnownWorkspace(row["workspace_id"], row["sync_version"], row["app"], row["env"], offer, functions, triggers)
