"""Waits for the end of a run: by the hint when this engine ends it, by looking when another does.

It is answered at once when the run ends, when the time is over, or when the engine drains.
"""

from __future__ import annotations

from typing import Final
from uuid import UUID

import trio

from engine.api.services import Services
from engine.store.read_result import RunResult, read_result

# The end that another engine made is found this late. Short at first, because most who wait have just started a short run.
LOOK_SECONDS_FIRST: Final = 0.05
LOOK_SECONDS_MAX: Final = 1.0


async def wait_result(services: Services, workspace_id: int, run_id: UUID, wait_seconds: float) -> RunResult | None:
    """Where the run stands at its end, or after `wait_seconds`; None when the workspace has no such run."""
    deadline = trio.current_time() + wait_seconds
    # An engine that is alone sees every end, so all its looks are for a hint that was lost.
    look_seconds = LOOK_SECONDS_FIRST if services.hints.has_others else LOOK_SECONDS_MAX
    # The watch begins before the look: an end between them is not missed.
    with services.hints.watch_run_end(run_id) as ended:
        while True:
            found = await services.database.read(read_result, workspace_id, run_id)
            now = trio.current_time()
            if found is None or found.has_ended or now >= deadline or services.is_draining():
                return found
            # At the end here, when the engine begins to drain, or when it is time to look again.
            with trio.move_on_at(min(deadline, now + look_seconds)):
                await ended.wait()
            look_seconds = min(look_seconds * 2, LOOK_SECONDS_MAX)
