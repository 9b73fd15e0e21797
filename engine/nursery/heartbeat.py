"""Keeps this engine's leases alive while their calls are open, and says that the engine itself lives.

An app that renews the leases of what it executes does so itself, so that a dead process loses them; the engine then only looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn
from uuid import UUID

import structlog
import trio

from engine.core.outcome import HandedBack
from engine.nursery.context import EngineContext
from engine.nursery.inflight import Inflight
from engine.store.apply_outcomes import RunReport
from engine.store.database import DatabaseUnavailable, TransactionConflict
from engine.store.engines import touch_engine
from engine.store.extend_leases import extend_leases, find_my_leases
from engine.store.group_writer import WriterOverloaded
from engine.store.read_leases import read_leases
from engine.store.sql import Connection

log = structlog.get_logger(__name__)


async def serve_heartbeat(engine: EngineContext, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
    """Renew leases three times in their length."""
    task_status.started()
    while True:
        try:
            await beat(engine)
        except (DatabaseUnavailable, TransactionConflict) as error:
            log.warning("heartbeat_failed", error=str(error))
            await trio.sleep(min(1.0, engine.limits.lease_seconds / 10))
            continue
        await trio.sleep(engine.limits.lease_seconds / 3)


async def beat(engine: EngineContext) -> None:
    """Renew all leases once; end the calls whose lease is lost; give back leases that this engine does not know it has."""
    state = "draining" if engine.draining.is_set() else "running"
    others = await engine.database.transact(touch_engine, engine.engine_id, state)
    engine.hints.has_others = others > 0
    held = {inflight.run_id: inflight for inflight in engine.inflight}
    if held:
        asked_at = trio.current_time()
        left = await engine.database.transact(
            _renew_leases,
            [pair(inflight) for inflight in held.values() if not inflight.app_keeps_lease],
            [pair(inflight) for inflight in held.values() if inflight.app_keeps_lease],
            engine.limits.lease_seconds,
        )
        for run_id, inflight in held.items():
            if run_id in left:
                inflight.lease_ends_at = asked_at + left[run_id]
            elif run_id in engine.inflight and inflight.outcome is None:
                log.warning("lease_lost", run_id=str(run_id), generation=inflight.handover.lease.generation)
                inflight.end("lease_lost")
    for run_id, workspace_id, generation in await engine.database.read(find_my_leases, engine.engine_id):
        if run_id not in engine.inflight and run_id not in held:
            # A claim whose commit was never heard of: nobody executes it.
            log.warning("unknown_lease_given_back", run_id=str(run_id))
            # Not waited for long: a writer with much before it must not keep the leases from being renewed.
            with trio.move_on_after(1), suppress(WriterOverloaded):
                await engine.reports.submit(RunReport(workspace_id, run_id, generation, HandedBack()))


def pair(inflight: Inflight) -> tuple[UUID, int]:
    """How the store names a lease."""
    return inflight.run_id, inflight.handover.lease.generation


async def _renew_leases(
    conn: Connection, ours: Sequence[tuple[UUID, int]], of_apps: Sequence[tuple[UUID, int]], lease_seconds: float
) -> dict[UUID, float]:
    """Renew our own leases, look at those that apps renew; how many seconds are left of each that is still there."""
    kept = dict.fromkeys(await extend_leases(conn, ours, lease_seconds), lease_seconds)
    return kept | await read_leases(conn, of_apps)
