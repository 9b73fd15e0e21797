"""Hints between the engines of one database: NOTIFY when something is due here, LISTEN for the others.

Coalesced, in a statement of its own, and only while there are others: inside a transaction it would make all commits queue. A lost one
costs the time until the next look.
"""

from __future__ import annotations

from typing import NoReturn

import structlog
import trio

from engine.nursery.context import EngineContext
from engine.store.database import DatabaseUnavailable

log = structlog.get_logger(__name__)

CHANNEL = "durable"
COALESCE_SECONDS = 0.01


async def serve_notifier(engine: EngineContext, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
    """Tell the other engines."""
    pending: set[str] = set()
    filled = trio.Event()

    def tell(name: str) -> None:
        nonlocal filled
        if engine.hints.has_others:
            pending.add(name)
            filled.set()

    engine.hints.tell_others = tell
    task_status.started()
    while True:
        await filled.wait()
        await trio.sleep(COALESCE_SECONDS)
        filled = trio.Event()
        names = sorted(pending)
        pending.clear()
        try:
            for name in names:
                await engine.database.notify(CHANNEL, f"{name} {engine.engine_id}")
        except DatabaseUnavailable as error:
            log.warning("notify_failed", error=str(error))


async def serve_listener(engine: EngineContext, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
    """Hear the other engines."""

    def heard(payload: str) -> None:
        name, _, sender = payload.partition(" ")
        if sender != str(engine.engine_id):
            engine.hints.has_others = True
            engine.hints.heard(name)

    task_status.started()
    while True:
        try:
            await engine.database.listen(CHANNEL, heard)
        except DatabaseUnavailable as error:
            log.warning("listen_failed", error=str(error))
        await trio.sleep(1)
