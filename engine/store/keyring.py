"""The signing keys of workspaces as requests need them: from memory mostly, from the database when they may have changed.

A new key works at once, because a signature that fits no remembered key makes the ring look again; a revoked one stops working
within `KEYS_FRESH_SECONDS`. In dev mode the environment `dev` also has the dev key, so that nobody has to make keys to begin.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import trio

from engine.store.database import Database
from engine.store.sealing import Sealer
from engine.store.signing_keys import read_live_keys
from engine.store.workspaces import find_or_create_workspace
from protocol.signing import Key

KEYS_FRESH_SECONDS = 5.0
# A stranger's bad signatures must not become as many reads of the database.
LOOK_AGAIN_SECONDS = 0.5
# Names are the caller's choice, so what is remembered of them is bounded.
WORKSPACES_REMEMBERED_MAX = 4_096
DEV_ENVIRONMENT = "dev"


@dataclass(frozen=True, slots=True)
class WorkspaceKeys:
    """The keys of a workspace, and its id; no id while only the dev key speaks for it and nobody came yet."""

    app: str
    env: str
    workspace_id: int | None
    keys: tuple[Key, ...]


@dataclass(frozen=True, slots=True)
class _Remembered:
    keys: WorkspaceKeys
    read_at: float


class Keyring:
    """All live keys, by workspace."""

    def __init__(self, database: Database, sealer: Sealer, dev_key: Key | None) -> None:
        self._database = database
        self._sealer = sealer
        self._dev_key = dev_key
        self._remembered: OrderedDict[tuple[str, str], _Remembered] = OrderedDict()
        self._being_read: dict[tuple[str, str], trio.Event] = {}

    async def live_keys(self, app: str, env: str, *, newer: bool = False) -> WorkspaceKeys:
        """The keys of this workspace, none if it has none or is unknown. `newer`: those in memory did not fit."""
        remembered = self._remembered.get((app, env))
        fresh_seconds = LOOK_AGAIN_SECONDS if newer else KEYS_FRESH_SECONDS
        if remembered is not None and trio.current_time() - remembered.read_at < fresh_seconds:
            return remembered.keys
        being_read = self._being_read.get((app, env))
        if being_read is not None:
            # One look for all who ask at once: under load, a look each would be hundreds every few seconds.
            if remembered is not None and not newer:
                return remembered.keys
            await being_read.wait()
            return await self.live_keys(app, env, newer=newer)
        self._being_read[app, env] = done = trio.Event()
        try:
            return await self._read(app, env)
        finally:
            del self._being_read[app, env]
            done.set()

    async def workspace_id(self, keys: WorkspaceKeys) -> int:
        """The id of the workspace that a message signed with one of `keys` is from; made at its first message in dev."""
        if keys.workspace_id is not None:
            return keys.workspace_id
        workspace_id = await self._database.transact(find_or_create_workspace, keys.app, keys.env)
        self._remember(WorkspaceKeys(keys.app, keys.env, workspace_id, keys.keys))
        return workspace_id

    def remembers(self, app: str, env: str) -> bool:
        """Whether it asked for this workspace before, so that asking again costs at most a look in `KEYS_FRESH_SECONDS`."""
        return (app, env) in self._remembered

    def may_be_anyones(self, env: str) -> tuple[Key, ...]:
        """The keys for asking an app that has not said its name yet (`*/env`)."""
        return self._dev_keys(env)

    def forget(self, app: str, env: str) -> None:
        """A key of this workspace was made or revoked here: read them again."""
        self._remembered.pop((app, env), None)

    async def _read(self, app: str, env: str) -> WorkspaceKeys:
        found = await self._database.read(read_live_keys, self._sealer, app, env)
        workspace_id, own = found if found is not None else (None, [])
        keys = WorkspaceKeys(app, env, workspace_id, (*own, *self._dev_keys(env)))
        self._remember(keys)
        return keys

    def _dev_keys(self, env: str) -> tuple[Key, ...]:
        return (self._dev_key,) if self._dev_key is not None and env == DEV_ENVIRONMENT else ()

    def _remember(self, keys: WorkspaceKeys) -> None:
        self._remembered[keys.app, keys.env] = _Remembered(keys, trio.current_time())
        self._remembered.move_to_end((keys.app, keys.env))
        if len(self._remembered) > WORKSPACES_REMEMBERED_MAX:
            self._remembered.popitem(last=False)
