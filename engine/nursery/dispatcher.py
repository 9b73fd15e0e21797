"""Claims due runs and starts an invocation of each. It waits for hints, and while it was busy a moment ago also looks by itself."""

from __future__ import annotations

import math
from typing import NoReturn

import structlog
import trio

from engine.nursery.context import EngineContext
from engine.store.claim_runs import Claimed, claim_runs
from engine.store.crash_points import crash_point
from engine.store.database import DatabaseUnavailable, TransactionConflict

log = structlog.get_logger(__name__)

# What a lost hint can cost: 20 ms after work was found, then the double; beyond a second the lookout does the looking.
LOOK_SECONDS_MIN = 0.02
LOOK_SECONDS_MAX = 1.0
# How often workspaces with little room have a claim of their own, which is as small as the least of them has room for.
SMALL_CLAIM_SECONDS = 0.05
# Longer than any healthy claim and hand-over; only a stuck database comes near it.
HANDOVER_SECONDS_MAX = 15.0


async def serve_dispatcher(engine: EngineContext, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
    """Start each due run."""
    task_status.started()
    look_seconds = LOOK_SECONDS_MIN
    after_lane = 0
    small_claim_at = -math.inf
    while True:
        # A claim is shielded: without this, a drain would be heard of only when nothing is due any more.
        await trio.lowlevel.checkpoint_if_cancelled()
        if engine.inflight.room().runs_max == 0:
            await engine.inflight.wait_left()
            continue
        try:
            found, after_lane = await claim_and_start(engine, after_lane)
            if engine.inflight.has_small() and trio.current_time() >= small_claim_at:
                small_claim_at = trio.current_time() + SMALL_CLAIM_SECONDS
                found += (await claim_and_start(engine, for_small=True))[0]
        except (DatabaseUnavailable, TransactionConflict) as error:
            log.warning("claim_failed", error=str(error))
            found, after_lane = 0, 0
            await trio.sleep(0.2)
        if found or after_lane:
            look_seconds = LOOK_SECONDS_MIN
            if engine.inflight.room().runs_max:
                continue
        with trio.move_on_after(look_seconds if look_seconds < LOOK_SECONDS_MAX else math.inf):
            await engine.hints.run_due.wait()
            look_seconds = LOOK_SECONDS_MIN
            continue
        look_seconds *= 2


async def claim_and_start(engine: EngineContext, after_lane: int = 0, *, for_small: bool = False) -> tuple[int, int]:
    """Claim what is due and there is room for, and start it; how many, and the lane to go on after."""
    room = engine.inflight.room(for_small=for_small)
    places = engine.intake.reserve(room.runs_max)
    if places == 0:
        return 0, 0
    claimed = Claimed((), 0, 0)
    try:
        # Claim and hand-over are one act: cancelled between them, the leases would be nobody's until they ended.
        with trio.CancelScope(shield=True, deadline=trio.current_time() + HANDOVER_SECONDS_MAX):
            claimed_at = trio.current_time()
            claimed = await engine.database.transact(
                claim_runs, engine.engine_id, places, engine.limits.lease_seconds, after_lane, room.full_workspaces
            )
            if claimed.handovers:
                crash_point("claimed_before_call")
                engine.intake.start(claimed.handovers, claimed_at)
                places -= len(claimed.handovers)
    finally:
        engine.intake.give_back(places)
    if claimed.has_due_runs:
        engine.hints.runs_are_due()
    if claimed.owes_promotion:
        engine.hints.promotion_owed.give()
    # Runs that only parked were found too: look again at once, there may be more behind them.
    return claimed.found, claimed.last_lane
