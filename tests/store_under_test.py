"""A workspace on a real database, moved by the store's own functions: sync, send, claim, report."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID, uuid4

from msgspec import Raw

from engine.core.ids import uuid7
from engine.core.outcome import Reported
from engine.store.append_events import NewEvent, append_events
from engine.store.apply_outcomes import RunReport, apply_outcomes
from engine.store.claim_runs import claim_runs
from engine.store.database import Database
from engine.store.sync_app import Synced, sync_app
from engine.store.workspaces import find_or_create_workspace
from protocol.manifest import FunctionConfig, Manifest, Workspace
from protocol.ops import Op, Step, StepError
from protocol.requests import EntryAnswer


@dataclass
class Store:
    """One workspace."""

    database: Database
    workspace: Workspace
    workspace_id: int
    engine_id: UUID = field(default_factory=uuid4)

    async def sync(self, *functions: FunctionConfig, deployment: str = "1", url: str = "http://127.0.0.1:9/") -> Synced:
        manifest = Manifest(self.workspace, [1], list(functions), deployment=deployment)
        return await self.database.transact(sync_app, self.workspace_id, url, manifest)

    async def send(self, name: str, data: str = "null", sent_id: str | None = None) -> UUID:
        """Send an event that starts one run; the run's id."""
        event = NewEvent(self.workspace_id, uuid7(time.time_ns() // 1_000_000, os.urandom(10)), name, data, sent_id)
        appended = await self.database.transact(append_events, [event])
        return appended.answers[0].runs[0][0]

    async def claim(self, runs_max: int = 100) -> dict[UUID, int]:
        """Lease what is due; run ids with their generations."""
        claimed = await self.database.transact(claim_runs, self.engine_id, runs_max, 30.0)
        return {lease.run_id: lease.generation for lease in claimed.leases}

    async def report(self, run_id: UUID, *ops: Op, generation: int = 1, known: int = 99, ends: bool = False) -> EntryAnswer:
        report = RunReport(self.workspace_id, run_id, generation, Reported(ops, known, ends))
        applied = await self.database.transact(apply_outcomes, [report], 30.0)
        [answer] = applied.answers
        assert isinstance(answer, EntryAnswer)
        return answer


async def open_store(database: Database, workspace: Workspace) -> Store:
    workspace_id = await database.transact(find_or_create_workspace, workspace.app, workspace.env)
    return Store(database, workspace, workspace_id)


def step(step_id: str, data: bytes = b"1", *, duration_seconds: float = 0.0, attempt: int = 1) -> Step:
    return Step(step_id, attempt, datetime.now(UTC), duration_seconds, 0, Raw(data))


def step_error(step_id: str, message: str = "no", *, retriable: bool = True, attempt: int = 1) -> StepError:
    error = Raw(b'{"name":"Oops","message":"%s"}' % message.encode())
    return StepError(step_id, error, retriable, attempt, datetime.now(UTC), 0.0, 0)
