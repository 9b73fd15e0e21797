"""Pays what a transaction could only promise: promotions at keys that were locked, and the keys of new match shapes."""

from __future__ import annotations

from typing import NoReturn

import structlog
import trio

from engine.nursery.context import EngineContext
from engine.store.backfill_shapes import backfill_shapes
from engine.store.database import DatabaseUnavailable, TransactionConflict
from engine.store.pay_promotions import pay_promotions

log = structlog.get_logger(__name__)


async def serve_promotions(engine: EngineContext, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
    """Hand free slots to waiters where a release could not."""
    task_status.started()
    while True:
        await engine.hints.promotion_owed.wait()
        try:
            owes = True
            while owes:
                has_due_runs, owes = await engine.database.transact(pay_promotions)
                if has_due_runs:
                    engine.hints.runs_are_due()
                if owes:
                    # Somebody holds a lock that this promotion needs; a moment.
                    await trio.sleep(0.005)
        except (DatabaseUnavailable, TransactionConflict) as error:
            log.warning("promotions_failed", error=str(error))


async def serve_backfill(engine: EngineContext, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
    """Key earlier events by the shapes of new waits."""
    task_status.started()
    while True:
        await engine.hints.backfill_owed.wait()
        try:
            has_more = True
            while has_more:
                backfilled = await engine.database.transact(backfill_shapes)
                has_more = backfilled.has_more
                if backfilled.has_due_runs:
                    engine.hints.runs_are_due()
        except (DatabaseUnavailable, TransactionConflict) as error:
            log.warning("backfill_failed", error=str(error))
