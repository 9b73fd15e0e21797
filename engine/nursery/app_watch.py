"""Finds apps: asks each URL for its manifest until the app is up, and again now and then, so that a deploy is seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import structlog
import trio

from engine.nursery.context import EngineContext
from engine.store.database import DatabaseUnavailable, TransactionConflict
from engine.store.list_app_urls import list_app_urls
from engine.store.sealing import SealBroken
from engine.store.sync_app import SyncRefused, sync_app
from engine.transport.app_client import Died, NotDelivered
from protocol.manifest import Manifest, Workspace

log = structlog.get_logger(__name__)

LOOK_SECONDS_DOWN = 0.5
LOOK_SECONDS_UP = 3.0
LOOK_SECONDS_KNOWN = 30.0

Announce = Callable[[str], None]


async def serve_app_watch(
    engine: EngineContext,
    url: str,
    workspace: Workspace,
    announce: Announce,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Watch the app at `url`; `workspace.app` is "*" while its name is unknown. `announce` prints for the person in front."""
    task_status.started()
    said = ""
    while True:
        sentence, is_up = await look(engine, url, workspace)
        if sentence and sentence != said:
            announce(sentence)
        said = sentence or said
        await trio.sleep(LOOK_SECONDS_UP if is_up else LOOK_SECONDS_DOWN)


async def look(engine: EngineContext, url: str, workspace: Workspace) -> tuple[str, bool]:
    """Ask once; a sentence about what was found, and whether the app is up."""
    keys = engine.keyring.may_be_anyones(workspace.env)
    if workspace.app != "*":
        try:
            keys = (await engine.keyring.live_keys(workspace.app, workspace.env)).keys
        except DatabaseUnavailable:
            return "", False
        except SealBroken as broken:
            return f"{url}: {broken}", False
    if not keys:
        return f"{url}: the workspace {workspace} has no signing key; make one with `durable key create`.", False
    answer = await engine.apps.ask_manifest(url, workspace, keys)
    if isinstance(answer, NotDelivered):
        return f"{url}: waiting for the app ({answer.detail})", False
    if isinstance(answer, Died):
        return f"{url}: {answer.message}", False
    found = answer.workspace
    if found.env != workspace.env or workspace.app not in ("*", found.app):
        return f"{url}: the app says that it is {found}, not {workspace}.", False
    try:
        return await take_manifest(engine, url, answer), True
    except (SyncRefused, SealBroken) as refused:
        return f"{url}: the manifest of {found} is refused: {refused}", False
    except (DatabaseUnavailable, TransactionConflict):
        return "", True


async def take_manifest(engine: EngineContext, url: str, manifest: Manifest) -> str:
    """Store a manifest that its app gave; a sentence about it."""
    keys = await engine.keyring.live_keys(manifest.workspace.app, manifest.workspace.env)
    workspace_id = await engine.keyring.workspace_id(keys)
    synced = await engine.database.transact(sync_app, workspace_id, url, manifest)
    if synced.is_changed:
        engine.hints.runs_are_due()
        if synced.owes_promotion:
            engine.hints.promotion_owed.give()
    names = ", ".join(function.id for function in manifest.functions) or "no functions"
    return f"{url}: {manifest.workspace} with {names} (deployment {manifest.deployment[:12]})"


async def serve_known_apps(engine: EngineContext, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
    """Ask every app that the database knows for its manifest, now and then."""
    task_status.started()
    while True:
        await trio.sleep(LOOK_SECONDS_KNOWN)
        try:
            known = await engine.database.read(list_app_urls)
        except DatabaseUnavailable:
            continue
        for app, env, url in known:
            sentence, is_up = await look(engine, url, Workspace(app, env))
            if not is_up:
                log.warning("app_not_found", app=app, env=env, reason=sentence)
