"""Looks once a second for whatever hints were lost, and gives them anew. The one clock of an idle engine.

The other services wait for hints; so idling costs one round trip a second, however many services there are.
"""

from __future__ import annotations

from typing import NoReturn

import structlog
import trio

from engine.nursery.context import EngineContext
from engine.store.database import DatabaseUnavailable
from engine.store.hints import NEAR_SECONDS
from engine.store.look_around import look_around

log = structlog.get_logger(__name__)

LOOK_SECONDS = 1.0


async def serve_lookout(engine: EngineContext, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
    """Look, give hints, and wait a second."""
    task_status.started()
    while True:
        try:
            await look(engine)
        except DatabaseUnavailable as error:
            log.warning("lookout_failed", error=str(error))
        await trio.sleep(LOOK_SECONDS)


async def look(engine: EngineContext) -> None:
    """One look."""
    seen = await engine.database.read(look_around, NEAR_SECONDS)
    hints = engine.hints
    for is_there, hint in (
        (seen.has_due_runs, hints.run_due),
        (seen.has_ended_leases, hints.lease_ended),
        (seen.has_near_timers, hints.timer_near),
        (seen.owes_promotion, hints.promotion_owed),
        (seen.owes_backfill, hints.backfill_owed),
    ):
        if is_there:
            hint.give()
