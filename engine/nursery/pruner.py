"""Deletes what has expired, a page at a time, so that no deletion is ever long."""

from __future__ import annotations

from typing import NoReturn

import structlog
import trio

from engine.nursery.context import EngineContext
from engine.store.database import DatabaseUnavailable, TransactionConflict
from engine.store.prune_expired import prune_expired

log = structlog.get_logger(__name__)

LOOK_SECONDS = 60.0


async def serve_pruner(engine: EngineContext, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
    """Prune once a minute."""
    task_status.started()
    while True:
        await trio.sleep(LOOK_SECONDS)
        try:
            has_more = True
            while has_more:
                has_more = await engine.database.transact(prune_expired) > 0
                # Pages with room between them: deleting is never urgent.
                await trio.sleep(0.1)
        except (DatabaseUnavailable, TransactionConflict) as error:
            log.warning("prune_failed", error=str(error))
