"""What this process knows of the apps of its database: functions, triggers, limits and offers, a workspace at a time.

Each entry names the `sync_version` of the workspace that it was read at. It is used only together with a statement that compares that
version with the row's, so an entry that is out of date costs a second look and never a wrong row.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from engine.store.app_offer import AppOffer
from protocol.manifest import FunctionConfig

# What is known of more workspaces than this is forgotten, the one that was read first at first.
WORKSPACES_MAX = 10_000


class KnownFunction(msgspec.Struct, frozen=True, gc=False):
    """A function with its limits in force, in id order: (limit id, key expression; "" is one key for all)."""

    function_id: int
    name: str
    config: FunctionConfig
    limits: tuple[tuple[int, str], ...] = ()


class KnownTrigger(msgspec.Struct, frozen=True, gc=False):
    """What an event name does with one function: the conditions of its triggers in their order, None where there is none."""

    function: KnownFunction
    conditions: tuple[str | None, ...]


class KnownWorkspace(msgspec.Struct, frozen=True):
    """One workspace at one version. `triggers`: by event name, in the order of function ids; removed functions have none."""

    workspace_id: int
    sync_version: int
    app: str
    env: str
    offer: AppOffer | None
    functions: Mapping[int, KnownFunction]
    triggers: Mapping[str, tuple[KnownTrigger, ...]]


class FunctionCache:
    """The workspaces that are known. One a database."""

    def __init__(self) -> None:
        self._workspaces: dict[int, KnownWorkspace] = {}

    def get(self, workspace_id: int) -> KnownWorkspace | None:
        return self._workspaces.get(workspace_id)

    def put(self, workspace: KnownWorkspace) -> None:
        if len(self._workspaces) >= WORKSPACES_MAX and workspace.workspace_id not in self._workspaces:
            del self._workspaces[next(iter(self._workspaces))]
        self._workspaces[workspace.workspace_id] = workspace

    def forget(self, workspace_ids: set[int]) -> None:
        for workspace_id in workspace_ids:
            self._workspaces.pop(workspace_id, None)
