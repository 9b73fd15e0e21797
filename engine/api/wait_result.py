"""Waits for the end of a run: by the hint when this engine ends it, by looking when another does.

It is answered at once when the run ends, when the time is over, or when the engine drains.
"""

from __future__ import annotations

from typing import Final
from uuid import UUID

import trio

from engine.api.services import Services
from engine.store.read_result import RunResult, read_result

# Another engine's end is found this late at most.
LOOK_SECONDS: Final = 1.0
# Draining is looked at without the database.
DRAIN_LOOK_SECONDS: Final = 0.1


async def wait_result(services: Services, workspace_id: int, run_id: UUID, wait_seconds: float) -> RunResult | None:
    """Where the run stands at its end, or after `wait_seconds`; None when the workspace has no such run."""
    deadline = trio.current_time() + wait_seconds
    while True:
        async with trio.open_nursery() as nursery:
            ended = trio.Event()
            # Before the look: an end between the look and the wait would be missed.
            await nursery.start(_watch, services, run_id, LOOK_SECONDS, ended)
            found = await services.transact(read_result, workspace_id, run_id)
            if found is not None and not found.has_ended:
                look_at = min(deadline, trio.current_time() + LOOK_SECONDS)
                await _wait(services, ended, look_at)
            nursery.cancel_scope.cancel()
        if found is None or found.has_ended:
            return found
        if trio.current_time() >= deadline or services.is_draining():
            # The last look is not older than this answer, unless it ended in the last moment.
            return await services.transact(read_result, workspace_id, run_id) if ended.is_set() else found


async def _watch(
    services: Services,
    run_id: UUID,
    at_most_seconds: float,
    ended: trio.Event,
    task_status: trio.TaskStatus[None],
) -> None:
    # No checkpoint between started() and the registration inside wait_run_end, so who looks after start() is not too early.
    task_status.started()
    await services.hints.wait_run_end(run_id, at_most_seconds)
    ended.set()


async def _wait(services: Services, ended: trio.Event, until: float) -> None:
    while not ended.is_set() and not services.is_draining() and trio.current_time() < until:
        with trio.move_on_at(min(until, trio.current_time() + DRAIN_LOOK_SECONDS)):
            await ended.wait()
