"""A small world for tests of the store: one app with functions, an engine that claims, and invocations that report. All rows are real."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import UUID

import msgspec
import trio
import trio_asyncio
from msgspec import Raw

from engine.core.ids import uuid7
from engine.core.outcome import Outcome, Reported
from engine.store.append_events import Appended, NewEvent, append_events
from engine.store.apply_outcomes import Applied, RunReport, apply_outcomes
from engine.store.audit import audit
from engine.store.claim_runs import Claimed, claim_runs
from engine.store.database import Database
from engine.store.lease import Lease
from engine.store.sql import Connection
from engine.store.sync_app import sync_app
from engine.store.workspaces import find_or_create_workspace
from protocol.manifest import Concurrency, FunctionConfig, Manifest, Trigger, Workspace
from protocol.ops import Backoff, EventIn, Op, SendEvents, Step, StepError, WaitForEvent
from protocol.requests import EntryAnswer

T = TypeVar("T")
LEASE_SECONDS = 30.0


def new_id() -> UUID:
    return uuid7(int(time.time() * 1000), os.urandom(10))


def function(name: str, *events: str, limit: int | None = None, key: str | None = None, retries: int = 3) -> FunctionConfig:
    concurrency = [] if limit is None else [Concurrency(limit, key)]
    triggers = [Trigger(event) for event in events or ("go",)]
    return FunctionConfig(name, triggers, retries=retries, backoff=Backoff(0, 1, 0, jitter=False), concurrency=concurrency)


def step(step_id: str, data: object = 1) -> Step:
    return Step(step_id, 1, datetime.now(UTC), 0.01, 0, Raw(msgspec.json.encode(data)))


def step_error(step_id: str, attempt: int = 1, **options: Any) -> StepError:
    error = Raw(b'{"name":"ValueError","message":"no"}')
    return StepError(step_id, error, options.pop("retriable", True), attempt, datetime.now(UTC), 0.01, 0, **options)


def wait(step_id: str, event: str, match: dict[str, Any] | None = None, **options: Any) -> WaitForEvent:
    return WaitForEvent(step_id, event, options.pop("timeout_seconds", 60.0), match, **options)


def send(step_id: str, *events: tuple[str, object], ids: tuple[str, ...] = ()) -> SendEvents:
    named = [EventIn(name, Raw(msgspec.json.encode(data))) for name, data in events]
    if ids:
        named = [EventIn(event.name, event.data, event_id) for event, event_id in zip(named, ids, strict=True)]
    return SendEvents(step_id, named)


@dataclass
class World:
    """One workspace on a real database."""

    database: Database
    workspace_id: int
    engine_id: UUID

    async def sync(self, *functions: FunctionConfig) -> None:
        manifest = Manifest(Workspace("shop", "dev"), [1], list(functions))
        await self.database.transact(sync_app, self.workspace_id, "http://127.0.0.1:1/", manifest)

    def event(self, name: str, data: object = None, event_id: str | None = None) -> NewEvent:
        return NewEvent(self.workspace_id, new_id(), name, msgspec.json.encode(data).decode(), external_id=event_id)

    async def append(self, *events: NewEvent) -> Appended:
        return await self.database.transact(append_events, list(events))

    async def start(self, data: object = None, name: str = "go") -> UUID:
        """Send an event that starts one run; the run."""
        [answer] = (await self.append(self.event(name, data))).answers
        [(run_id, _)] = answer.runs
        return run_id

    async def claim(self, runs_max: int = 100, *, engine_id: UUID | None = None) -> list[Lease]:
        return list((await self.claimed(runs_max, engine_id=engine_id)).leases)

    async def claimed(self, runs_max: int = 100, *, engine_id: UUID | None = None) -> Claimed:
        """Claim, with what there is to hand over."""
        return await self.database.transact(claim_runs, engine_id or self.engine_id, runs_max, LEASE_SECONDS)

    async def claim_one(self) -> Lease:
        [lease] = await self.claim()
        return lease

    def report(self, lease: Lease, *ops: Op, known: int = 0, ends: bool = False) -> RunReport:
        return RunReport(self.workspace_id, lease.run_id, lease.generation, Reported(ops, known, ends))

    async def apply(self, *reports: RunReport, is_repeated: bool = False) -> Applied:
        return await self.database.transact(apply_outcomes, list(reports), LEASE_SECONDS, is_repeated)

    async def say(self, lease: Lease, *ops: Op, known: int = 0, ends: bool = False) -> EntryAnswer:
        """Apply one report; its answer."""
        return await self._answer(self.report(lease, *ops, known=known, ends=ends))

    async def outcome(self, lease: Lease, outcome: Outcome) -> EntryAnswer:
        return await self._answer(RunReport(self.workspace_id, lease.run_id, lease.generation, outcome))

    async def _answer(self, report: RunReport) -> EntryAnswer:
        """The answer of one report; while another transaction holds the run it is asked again, as the writer does."""
        while True:
            [answer] = (await self.apply(report)).answers
            if isinstance(answer, EntryAnswer):
                return answer
            await trio.sleep(0.001)

    async def rows(self, text: str, *values: object) -> list[dict[str, Any]]:
        """Rows of a question to the database, in plain SQL."""

        async def ask(conn: Connection) -> list[dict[str, Any]]:
            return [dict(row) for row in await conn._raw.fetch(text, *values)]

        return await self.database.read(ask)

    async def state(self, run_id: UUID) -> str:
        """The live state of a run, or how it ended."""
        rows = await self.rows(
            "SELECT coalesce(e.status, l.state) AS state FROM run r LEFT JOIN live_run l USING (run_id) LEFT JOIN run_end e USING (run_id) "
            "WHERE run_id = $1",
            run_id,
        )
        return str(rows[0]["state"])

    async def memo(self, run_id: UUID) -> list[tuple[str, int, str | None]]:
        rows = await self.rows("SELECT step_id, position, data FROM step WHERE run_id = $1 ORDER BY position", run_id)
        return [(row["step_id"], row["position"], row["data"]) for row in rows]

    async def assert_sound(self) -> None:
        """The audit finds nothing."""
        findings = await self.database.read(audit)
        assert not findings, findings

    @asynccontextmanager
    async def paused(self, work: Callable[..., Awaitable[T]], *args: Any):  # type: ignore[no-untyped-def]
        """Run `work` in a transaction that stands still before its commit while the block runs; yields where its result will be."""
        result: list[T] = []
        reached = trio.Event()
        go = asyncio.Event()

        async def stop_before_commit(conn: Connection) -> None:
            result.append(await work(conn, *args))
            reached.set()
            await go.wait()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.database.transact, stop_before_commit)
            await reached.wait()
            try:
                yield result
            finally:
                trio_asyncio.current_loop.get().call_soon(go.set)


async def make_world(database: Database, *functions: FunctionConfig) -> World:
    workspace_id = await database.transact(find_or_create_workspace, "shop", "dev")
    world = World(database, workspace_id, new_id())
    await world.sync(*(functions or (function("f", "go"),)))
    return world


async def stays_blocked(work: Callable[[], Awaitable[object]], seconds: float = 0.3) -> bool:
    """Whether `work` does not come to its end within the time; it is cancelled then."""
    with trio.move_on_after(seconds) as scope:
        await work()
    return scope.cancelled_caught
