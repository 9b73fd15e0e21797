"""Takes back runs whose lease has ended: those of engines that died, froze, or lost the database for too long."""

from __future__ import annotations

from typing import NoReturn

import structlog
import trio

from engine.nursery.context import EngineContext
from engine.store.database import DatabaseUnavailable, TransactionConflict
from engine.store.reclaim_leases import RECLAIMED_PER_GROUP_MAX, reclaim_leases

log = structlog.get_logger(__name__)


async def serve_reaper(engine: EngineContext, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
    """Take ended leases back when the lookout has seen one."""
    task_status.started()
    while True:
        await engine.hints.lease_ended.wait()
        try:
            while await reclaim(engine):
                pass
        except (DatabaseUnavailable, TransactionConflict) as error:
            # The lookout sees them again in a second.
            log.warning("reclaim_failed", error=str(error))


async def reclaim(engine: EngineContext) -> bool:
    """Take one group back; whether there may be more."""
    reclaimed = await engine.database.transact(reclaim_leases)
    if reclaimed.run_ids:
        log.warning("leases_reclaimed", runs=len(reclaimed.run_ids))
    if reclaimed.has_due_runs:
        engine.hints.runs_are_due()
    if reclaimed.owes_promotion:
        engine.hints.promotion_owed.give()
    if reclaimed.near_timer_seconds is not None:
        engine.hints.timer_is_near(reclaimed.near_timer_seconds)
    return len(reclaimed.run_ids) == RECLAIMED_PER_GROUP_MAX
