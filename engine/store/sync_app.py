"""Takes an app's manifest: its functions, triggers and limits as rows, all or nothing. The same manifest again writes nothing.

A function that is missing from the manifest is kept with its runs, and its lane is held until it returns. Whether the caller may
say this for the workspace is the caller's to know.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from engine.core.expression import ExpressionRefused, check_expression
from engine.store.hold_lanes import free_lanes
from engine.store.sql import Connection, Sql
from protocol.limits import PROTOCOL_VERSION
from protocol.manifest import FunctionConfig, Manifest

# Serializes the syncs of a workspace: each compares with what the one before left.
LOCK_WORKSPACE_FOR_SYNC = Sql(
    "lock_workspace_for_sync", "SELECT 1 FROM workspace WHERE workspace_id = $workspace_id FOR NO KEY UPDATE"
)
READ_SYNCED_APP = Sql("read_synced_app", "SELECT serve_url, manifest FROM app WHERE workspace_id = $workspace_id")
PUT_APP = Sql(
    "put_app",
    """
INSERT INTO app (workspace_id, serve_url, manifest, deployment) VALUES ($workspace_id, $serve_url, $manifest, $deployment)
ON CONFLICT (workspace_id) DO UPDATE
   SET serve_url = excluded.serve_url, manifest = excluded.manifest, deployment = excluded.deployment, synced_at = now()""",
)
# The time keeps a version from naming two states of a workspace, should a standby that missed the last ones take over.
BUMP_SYNC_VERSION = Sql(
    "bump_sync_version",
    """
UPDATE workspace SET sync_version = greatest(sync_version + 1, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint)
 WHERE workspace_id = $workspace_id""",
)
PUT_FUNCTIONS = Sql(
    "put_functions",
    """
INSERT INTO function (workspace_id, name, config)
SELECT $workspace_id, name, config FROM unnest($names::text[], $configs::text[]) AS u (name, config) ORDER BY name
ON CONFLICT (workspace_id, name) DO UPDATE
   SET config = excluded.config, removed_at = NULL,
       config_version = function.config_version + (function.config <> excluded.config)::int
 WHERE function.config <> excluded.config OR function.removed_at IS NOT NULL
RETURNING function_id, name""",
)
REMOVE_FUNCTIONS = Sql(
    "remove_functions",
    """
UPDATE function SET removed_at = now()
 WHERE workspace_id = $workspace_id AND removed_at IS NULL AND NOT name = ANY($names::text[])
RETURNING function_id""",
)
DELETE_TRIGGERS = Sql("delete_triggers", "DELETE FROM trigger WHERE function_id = ANY($function_ids::int[])")
INSERT_TRIGGERS = Sql(
    "insert_triggers",
    """
INSERT INTO trigger (workspace_id, event_name, function_id, ordinal, condition)
SELECT $workspace_id, event_name, function_id, ordinal, condition
  FROM unnest($event_names::text[], $function_ids::int[], $ordinals::smallint[], $conditions::text[])
       AS u (event_name, function_id, ordinal, condition)""",
)
READ_LIMITS = Sql(
    "read_limits",
    """
SELECT limit_id, function_id, key_expression, slots, in_force
  FROM concurrency_limit WHERE function_id = ANY($function_ids::int[])""",
)
PUT_LIMITS = Sql(
    "put_limits",
    """
INSERT INTO concurrency_limit (function_id, key_expression, slots)
SELECT function_id, key_expression, slots
  FROM unnest($function_ids::int[], $key_expressions::text[], $slots::int[]) AS u (function_id, key_expression, slots)
ON CONFLICT (function_id, key_expression) DO UPDATE SET slots = excluded.slots, in_force = true
 WHERE concurrency_limit.slots <> excluded.slots OR NOT concurrency_limit.in_force""",
)
LIFT_LIMITS = Sql("lift_limits", "UPDATE concurrency_limit SET in_force = false WHERE limit_id = ANY($limit_ids::int[])")
# In id order, as everywhere. A claim that parks at a key holds it, so after this lock its parked run is seen.
LOCK_KEYS_OF_LIMITS = Sql(
    "lock_keys_of_limits",
    "SELECT limit_key_id FROM limit_key WHERE limit_id = ANY($limit_ids::int[]) ORDER BY limit_key_id FOR UPDATE",
)
OWE_RAISED_PROMOTIONS = Sql(
    "owe_raised_promotions",
    """
INSERT INTO promotion (limit_key_id)
SELECT k.limit_key_id FROM limit_key AS k
 WHERE k.limit_id = ANY($limit_ids::int[])
   AND EXISTS (SELECT FROM live_run WHERE live_run.state = 'parked' AND live_run.parked_key_id = k.limit_key_id)
 ORDER BY k.limit_key_id
ON CONFLICT DO NOTHING""",
)
HOLD_REMOVED_FUNCTIONS = Sql(
    "hold_removed_functions",
    """
INSERT INTO lane_hold (function_id, held_until, cause, detail)
SELECT function_id, 'infinity', 'function_removed', $detail
  FROM unnest($function_ids::int[]) AS u (function_id) ORDER BY function_id
ON CONFLICT (function_id) DO UPDATE
   SET held_until = excluded.held_until, cause = excluded.cause, detail = excluded.detail""",
)
FREE_RETURNED_FUNCTIONS = Sql(
    "free_returned_functions",
    "DELETE FROM lane_hold WHERE function_id = ANY($function_ids::int[]) AND cause = 'function_removed'",
)


class SyncRefused(Exception):
    """The manifest can not be used; nothing of it was. `place` is a JSON pointer into the manifest: mend what is there."""

    def __init__(self, code: str, message: str, hint: str, place: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.place = place


@dataclass(frozen=True, slots=True)
class Synced:
    """What a sync did: the functions that are there now, whether anything changed, and what the engine should be told."""

    functions: int
    is_changed: bool
    has_due_runs: bool = False
    owes_promotion: bool = False


async def sync_app(conn: Connection, workspace_id: int, serve_url: str, manifest: Manifest) -> Synced:
    """Make the rows of the workspace what the manifest says. Refuses it as a whole with SyncRefused."""
    check_usable(manifest)
    text = msgspec.json.encode(manifest, order="deterministic").decode()
    # Before the lock, since nearly every sync ends here; and behind it, since another may have written the same in between.
    if await _is_known(conn, workspace_id, serve_url, text):
        return Synced(len(manifest.functions), is_changed=False)
    await conn.execute(LOCK_WORKSPACE_FOR_SYNC, workspace_id=workspace_id)
    if await _is_known(conn, workspace_id, serve_url, text):
        return Synced(len(manifest.functions), is_changed=False)
    await conn.execute(BUMP_SYNC_VERSION, workspace_id=workspace_id)
    await conn.execute(PUT_APP, workspace_id=workspace_id, serve_url=serve_url, manifest=text, deployment=manifest.deployment)
    by_name = {function.id: function for function in manifest.functions}
    removed = [row["function_id"] for row in await conn.fetch(REMOVE_FUNCTIONS, workspace_id=workspace_id, names=list(by_name))]
    rows = await conn.fetch(
        PUT_FUNCTIONS,
        workspace_id=workspace_id,
        names=list(by_name),
        configs=[_config_text(function) for function in by_name.values()],
    )
    changed = {row["function_id"]: by_name[row["name"]] for row in rows}
    await _write_triggers(conn, workspace_id, changed, removed)
    # Holds before keys: the order in which the end of an invocation takes them.
    has_free_lanes = await _write_holds(conn, workspace_id, list(changed), removed)
    owes_promotion = await _write_limits(conn, changed)
    return Synced(len(by_name), True, has_due_runs=has_free_lanes, owes_promotion=owes_promotion)


def check_usable(manifest: Manifest) -> None:
    """Refuse a manifest of no common protocol version, or with an expression or limit that can not be used."""
    if PROTOCOL_VERSION not in manifest.protocol:
        raise SyncRefused(
            "no_common_protocol",
            f"The app speaks the protocol versions {manifest.protocol}; this engine speaks {PROTOCOL_VERSION}.",
            "Update the SDK, or the engine, to versions that have a protocol version in common.",
            "/protocol",
        )
    for index, function in enumerate(manifest.functions):
        place = f"/functions/{index}"
        for number, trigger in enumerate(function.triggers):
            if trigger.if_ is not None:
                _check_expression(function.id, f"triggers[{number}].if", trigger.if_, f"{place}/triggers/{number}/if")
        keys: set[str] = set()
        for number, limit in enumerate(function.concurrency):
            if limit.key is not None:
                _check_expression(function.id, f"concurrency[{number}].key", limit.key, f"{place}/concurrency/{number}/key")
            if (limit.key or "") in keys:
                raise SyncRefused(
                    "duplicate_limit",
                    f"Function {function.id}, concurrency[{number}]: a limit with the same key stands before it.",
                    "Keep one limit a key: the lower one is what would hold.",
                    f"{place}/concurrency/{number}",
                )
            keys.add(limit.key or "")


async def _is_known(conn: Connection, workspace_id: int, serve_url: str, text: str) -> bool:
    known = await conn.fetchrow(READ_SYNCED_APP, workspace_id=workspace_id)
    return known is not None and known["serve_url"] == serve_url and known["manifest"] == text


def _check_expression(function: str, field: str, source: str, place: str) -> None:
    try:
        if not source.strip():
            raise ExpressionRefused("it is empty")
        check_expression(source)
    except ExpressionRefused as refused:
        raise SyncRefused(
            "invalid_expression",
            f"Function {function}, {field}: the expression can not be used: {refused}",
            "Expressions are CEL over `event`; fields of event.data may be named directly, as in tenantId == 7.",
            place,
        ) from None


async def _write_triggers(
    conn: Connection, workspace_id: int, changed: dict[int, FunctionConfig], removed: Sequence[int]
) -> None:
    if not changed and not removed:
        return
    await conn.execute(DELETE_TRIGGERS, function_ids=[*changed, *removed])
    triggers = [
        (function_id, ordinal, trigger)
        for function_id, function in changed.items()
        for ordinal, trigger in enumerate(function.triggers)
    ]
    await conn.execute(
        INSERT_TRIGGERS,
        workspace_id=workspace_id,
        event_names=[trigger.event for _, _, trigger in triggers],
        function_ids=[function_id for function_id, _, _ in triggers],
        ordinals=[ordinal for _, ordinal, _ in triggers],
        conditions=[trigger.if_ for _, _, trigger in triggers],
    )


async def _write_limits(conn: Connection, changed: dict[int, FunctionConfig]) -> bool:
    """Put the limits of changed functions into force; whether waiting runs have a slot to get now."""
    if not changed:
        return False
    before = {
        (row["function_id"], row["key_expression"]): row for row in await conn.fetch(READ_LIMITS, function_ids=list(changed))
    }
    wanted = {
        (function_id, limit.key or ""): limit.limit for function_id, function in changed.items() for limit in function.concurrency
    }
    lifted = [row["limit_id"] for name, row in before.items() if row["in_force"] and name not in wanted]
    raised = [row["limit_id"] for name, row in before.items() if row["in_force"] and wanted.get(name, 0) > row["slots"]]
    if wanted:
        await conn.execute(
            PUT_LIMITS,
            function_ids=[function_id for function_id, _ in wanted],
            key_expressions=[expression for _, expression in wanted],
            slots=list(wanted.values()),
        )
    if lifted:
        await conn.execute(LIFT_LIMITS, limit_ids=lifted)
    opened = [*lifted, *raised]
    if not opened:
        return False
    await conn.execute(LOCK_KEYS_OF_LIMITS, limit_ids=opened)
    return await conn.execute(OWE_RAISED_PROMOTIONS, limit_ids=opened) > 0


async def _write_holds(conn: Connection, workspace_id: int, changed: list[int], removed: list[int]) -> bool:
    """Hold the lanes of removed functions, let the others go; whether a lane was let go."""
    if removed:
        detail = "The app's manifest does not have this function any more."
        await conn.execute(HOLD_REMOVED_FUNCTIONS, function_ids=removed, detail=detail)
    returned = await conn.execute(FREE_RETURNED_FUNCTIONS, function_ids=changed) if changed else 0
    # A new manifest is a sign of life: what could not be delivered before may be tried at once.
    return await free_lanes(conn, workspace_id, has_new_manifest=True) or returned > 0


def _config_text(function: FunctionConfig) -> str:
    return msgspec.json.encode(function, order="deterministic").decode()
