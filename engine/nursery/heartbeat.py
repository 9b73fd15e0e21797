"""Keeps this engine's leases alive while their calls are open, and says that the engine itself lives."""

from __future__ import annotations

from contextlib import suppress
from typing import NoReturn

import structlog
import trio

from engine.core.outcome import HandedBack
from engine.nursery.context import EngineContext
from engine.store.apply_outcomes import RunReport
from engine.store.database import DatabaseUnavailable, TransactionConflict
from engine.store.engines import touch_engine
from engine.store.extend_leases import extend_leases, find_my_leases
from engine.store.group_writer import WriterOverloaded

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
        pairs = [(run_id, inflight.handover.lease.generation) for run_id, inflight in held.items()]
        asked_at = trio.current_time()
        kept = await engine.database.transact(extend_leases, pairs, engine.limits.lease_seconds)
        for run_id, inflight in held.items():
            if run_id in kept:
                inflight.lease_ends_at = asked_at + engine.limits.lease_seconds
            elif run_id in engine.inflight and not inflight.has_ended:
                log.warning("lease_lost", run_id=str(run_id), generation=inflight.handover.lease.generation)
                inflight.end("lease_lost")
    for run_id, workspace_id, generation in await engine.database.read(find_my_leases, engine.engine_id):
        if run_id not in engine.inflight and run_id not in held:
            # A claim whose commit was never heard of: nobody executes it.
            log.warning("unknown_lease_given_back", run_id=str(run_id))
            # Not waited for long: a writer with much before it must not keep the leases from being renewed.
            with trio.move_on_after(1), suppress(WriterOverloaded):
                await engine.reports.submit(RunReport(workspace_id, run_id, generation, HandedBack()))
