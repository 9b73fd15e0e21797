"""Claims due runs and starts an invocation of each. It waits for hints, and while it was busy a moment ago also looks by itself."""

from __future__ import annotations

import math
from typing import NoReturn

import structlog
import trio

from engine.nursery.context import EngineContext
from engine.nursery.invocation import run_invocation, take_up
from engine.store.claim_runs import Claimed, claim_runs
from engine.store.crash_points import crash_point
from engine.store.database import DatabaseUnavailable, TransactionConflict
from engine.store.read_invocations import read_invocations

log = structlog.get_logger(__name__)

# What a lost hint can cost: 20 ms after work was found, then the double; beyond a second the lookout does the looking.
LOOK_SECONDS_MIN = 0.02
LOOK_SECONDS_MAX = 1.0
# Longer than any healthy claim and hand-over; only a stuck database comes near it.
HANDOVER_SECONDS_MAX = 15.0


async def serve_dispatcher(
    engine: EngineContext,
    invocations: trio.Nursery,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Start each due run in `invocations`."""
    task_status.started()
    look_seconds = LOOK_SECONDS_MIN
    after_lane = 0
    while True:
        # A claim is shielded: without this, a drain would be heard of only when nothing is due any more.
        await trio.lowlevel.checkpoint_if_cancelled()
        if engine.inflight.free == 0:
            await engine.inflight.wait_left()
            continue
        try:
            started, after_lane = await claim_and_start(engine, invocations, after_lane)
        except (DatabaseUnavailable, TransactionConflict) as error:
            log.warning("claim_failed", error=str(error))
            started, after_lane = 0, 0
            await trio.sleep(0.2)
        if started or after_lane:
            look_seconds = LOOK_SECONDS_MIN
            if engine.inflight.free:
                continue
        with trio.move_on_after(look_seconds if look_seconds < LOOK_SECONDS_MAX else math.inf):
            await engine.hints.run_due.wait()
            look_seconds = LOOK_SECONDS_MIN
            continue
        look_seconds *= 2


async def claim_and_start(engine: EngineContext, invocations: trio.Nursery, after_lane: int = 0) -> tuple[int, int]:
    """Claim what is due and there is room for, and start it; how many, and the lane to go on after."""
    # Claim and hand-over are one act: cancelled between them, the leases would be nobody's until they ended.
    claimed = Claimed((), 0, 0)
    with trio.CancelScope(shield=True, deadline=trio.current_time() + HANDOVER_SECONDS_MAX):
        claimed = await engine.database.transact(
            claim_runs,
            engine.engine_id,
            engine.inflight.claim_max,
            engine.limits.lease_seconds,
            after_lane,
            engine.inflight.full_workspaces(),
        )
        if claimed.has_due_runs:
            engine.hints.runs_are_due()
        if claimed.owes_promotion:
            engine.hints.promotion_owed.give()
        if claimed.leases:
            crash_point("claimed_before_call")
            read_at = trio.current_time()
            handovers = await engine.database.transact(read_invocations, claimed.leases)
            for handover in handovers:
                # Counted before its task begins, or the next claim would take its place once more.
                inflight = take_up(engine, handover, read_at)
                invocations.start_soon(run_invocation, engine, inflight, name=f"invocation {handover.lease.run_id}")
    # Runs that only parked were found too: look again at once, there may be more behind them.
    return claimed.found, claimed.last_lane
