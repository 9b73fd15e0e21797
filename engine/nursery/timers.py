"""Timers: sleeps, timeouts of waits and delayed retries. Near ones live as tasks with a deadline, far ones are only rows.

The row is the truth and the task is its alarm: an alarm that is lost is found again at the next look, and one that rings for a wait
which an event has ended finds nothing to do.
"""

from __future__ import annotations

import math
from typing import NoReturn

import structlog
import trio

from engine.nursery.context import EngineContext
from engine.nursery.task_tree import name_nursery
from engine.store.crash_points import crash_point
from engine.store.database import DatabaseUnavailable, TransactionConflict
from engine.store.fire_timers import Deadline, fire_timers, read_near_deadlines
from engine.store.hints import NEAR_SECONDS

log = structlog.get_logger(__name__)

LOOK_SECONDS = 2.0
ALARMS_MAX = 2_000

AlarmKey = tuple[object, str]


async def serve_timers(engine: EngineContext, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
    """Set an alarm for every timer of the next seconds, and fire what is due."""
    alarms: dict[AlarmKey, trio.Event] = {}
    rang = engine.hints.timer_rang
    async with trio.open_nursery() as nursery:
        name_nursery(nursery, "alarms")
        nursery.start_soon(_serve_firing, engine, name="timers firing")
        task_status.started()
        while True:
            try:
                near = await engine.database.read(read_near_deadlines, NEAR_SECONDS, ALARMS_MAX)
            except DatabaseUnavailable as error:
                log.warning("timers_not_read", error=str(error))
                await trio.sleep(0.5)
                continue
            wanted = {(deadline.run_id, deadline.step_id): deadline for deadline in near}
            for key in [key for key in alarms if key not in wanted]:
                alarms.pop(key).set()
            for key, deadline in wanted.items():
                if deadline.in_seconds <= 0:
                    rang.give()
                elif key not in alarms:
                    alarms[key] = trio.Event()
                    name = f"alarm {deadline.what} {deadline.run_id} {deadline.step_id}"
                    nursery.start_soon(_alarm, engine, alarms, key, deadline, name=name)
            # The lookout says when a timer comes near; while some are, the alarms are compared with their rows now and then.
            with trio.move_on_after(LOOK_SECONDS if alarms else math.inf):
                await engine.hints.timer_near.wait()


async def _alarm(engine: EngineContext, alarms: dict[AlarmKey, trio.Event], key: AlarmKey, deadline: Deadline) -> None:
    """Ring at the deadline, unless the wait ends before."""
    ended = alarms[key]
    with trio.move_on_after(deadline.in_seconds) as scope:
        await ended.wait()
    if scope.cancelled_caught:
        alarms.pop(key, None)
        engine.hints.timer_rang.give()


async def _serve_firing(engine: EngineContext) -> NoReturn:
    while True:
        await engine.hints.timer_rang.wait()
        try:
            while await fire_due(engine):
                pass
        except (DatabaseUnavailable, TransactionConflict) as error:
            log.warning("timers_not_fired", error=str(error))
            await trio.sleep(0.2)
            engine.hints.timer_rang.give()


async def fire_due(engine: EngineContext) -> bool:
    """Fire what is due, one group; whether more may be."""
    fired = await engine.database.transact(fire_timers)
    if fired.count:
        crash_point("timer_fired")
    if fired.has_due_runs:
        engine.hints.runs_are_due()
    if fired.has_locked:
        # A report or an event holds the run for a moment; looking again in two seconds would be late.
        await trio.sleep(0.01)
    return fired.has_more or fired.has_locked
