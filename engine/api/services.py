"""What the routes work with: one value, made by the composition root. Routes reach the rest of the engine only through it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar
from uuid import UUID

import msgspec

from engine.api.alive_polls import AlivePolls
from engine.store.append_events import AppendedEvent, NewEvent
from engine.store.apply_outcomes import RunReport
from engine.store.database import Database, TransactionConflict
from engine.store.group_writer import GroupWriter
from engine.store.hints import Hints
from engine.store.keyring import Keyring
from engine.store.sealing import Sealer
from engine.store.sql import Connection
from protocol.requests import EntryAnswer

P = ParamSpec("P")
T = TypeVar("T")

# A deadlock is rare and its loser was rolled back; losing three in a row means something else is wrong.
CONFLICT_TRIES = 3


class EngineInfo(msgspec.Struct, frozen=True):
    """This engine process, for people."""

    engine_id: UUID
    name: str
    version: str
    started_at: datetime


@dataclass(frozen=True, slots=True)
class Services:
    """`on_checkpoint(run_id)` is called when a report of that run was applied, `on_alive(run_id, lease_seconds)` when its app renewed
    its lease; `is_ready` gives the reason when it is not. `lease_seconds` is how long a lease is.
    """

    database: Database
    events: GroupWriter[NewEvent, AppendedEvent]
    reports: GroupWriter[RunReport, EntryAnswer]
    hints: Hints
    keys: Keyring
    sealer: Sealer
    mode: Literal["dev", "start"]
    engine: EngineInfo
    is_draining: Callable[[], bool]
    is_ready: Callable[[], Awaitable[tuple[bool, str]]]
    task_tree: Callable[[], Any]
    on_checkpoint: Callable[[UUID], None]
    on_alive: Callable[[UUID, float], None] = lambda run_id, lease_seconds: None
    lease_seconds: float = 30.0
    alive_polls: AlivePolls = field(default_factory=AlivePolls)

    async def transact(self, work: Callable[Concatenate[Connection, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """One transaction, repeated when it lost a deadlock."""
        for _ in range(CONFLICT_TRIES - 1):
            try:
                return await self.database.transact(work, *args, **kwargs)
            except TransactionConflict:
                continue
        return await self.database.transact(work, *args, **kwargs)
