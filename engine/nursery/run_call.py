"""The task of a call: starts its invocations, hands them over in one signed request, and reads the reply while one of them waits.

It learns how the app keeps pace, and that an app which answers late gets single calls. Outcomes are the invocations' to report.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import structlog
import trio

from engine.core.outcome import HandedBack, Undelivered
from engine.nursery.app_pace import PROMPT_SECONDS, SINGLE_SECONDS
from engine.nursery.call import Call
from engine.nursery.context import EngineContext
from engine.nursery.inflight import Inflight
from engine.nursery.invocation import run_invocation
from engine.nursery.task_tree import name_nursery
from engine.store.database import DatabaseUnavailable, TransactionConflict
from engine.store.hold_lanes import free_lanes
from engine.store.sealing import SealBroken
from engine.transport.app_client import CallResult, Died, NotDelivered
from protocol.calls import Invocation
from protocol.manifest import Workspace
from protocol.signing import Key

log = structlog.get_logger(__name__)


def start_call(engine: EngineContext, nursery: trio.Nursery, call: Call) -> None:
    """Start the task of a call in `nursery`."""
    handover = call.inflights[0].handover
    count = len(call.inflights)
    nursery.start_soon(run_call, engine, call, name=f"call {handover.app}/{handover.env}, {count} run{'s' * (count > 1)}")


async def run_call(engine: EngineContext, call: Call) -> None:
    """Execute the leases of one call, until all their outcomes are applied."""
    async with trio.open_nursery() as invocations:
        name_nursery(invocations, "invocations")
        for inflight in call.inflights:
            inflight.news()
            invocations.start_soon(run_invocation, engine, call, inflight, name=f"invocation {inflight.run_id}")
        if not call.open_runs:
            return
        if call.is_shared:
            invocations.start_soon(watch_first_byte, engine, call)

        def on_taken(inflight: Inflight) -> None:
            engine.inflight.took(inflight, call.sent_at)
            if engine.hints.is_held(inflight.workspace_id):
                engine.hints.forget_held(inflight.workspace_id)
                invocations.start_soon(_free_lanes, engine, inflight.workspace_id)

        call.on_taken = on_taken
        result: CallResult | None = None
        try:
            with call.scope:
                result = await _exchange(engine, call)
        finally:
            call.answered.set()
        _note_result(engine, call, call.over(result))


async def watch_first_byte(engine: EngineContext, call: Call) -> None:
    """When nothing of the reply comes in time, something before the app waits for its end: it gets single calls for a while."""
    with trio.move_on_after(PROMPT_SECONDS):
        await call.answered.wait()
        return
    handover = call.inflights[0].handover
    pace = engine.inflight.pace(handover.lease.workspace_id)
    now = trio.current_time()
    if not pace.gets_single_calls(now):
        log.warning("app_gets_single_calls", app=handover.app, env=handover.env, first_byte_seconds_max=PROMPT_SECONDS)
    pace.single_until = now + SINGLE_SECONDS


async def _exchange(engine: EngineContext, call: Call) -> CallResult | None:
    """Send the call and read its reply; None when nothing was sent, which all who wait are told then."""
    handover = call.inflights[0].handover
    workspace = Workspace(handover.app, handover.env)
    if handover.offer is None:
        call.settle_all(Undelivered("app_unreachable", "The app has not told the engine its URL."))
        return None
    keys = await _keys(engine, call, workspace)
    invocations = _invocations(call)
    if not keys or not invocations:
        return None
    call.sent_at = trio.current_time()
    return await engine.apps.invoke(handover.offer.serve_url, workspace, keys, invocations, call.on_line, call.on_answer)


async def _keys(engine: EngineContext, call: Call, workspace: Workspace) -> Sequence[Key]:
    try:
        keys = (await engine.keyring.live_keys(workspace.app, workspace.env)).keys
    except DatabaseUnavailable:
        call.settle_all(HandedBack())
        return ()
    except SealBroken as broken:
        call.settle_all(Undelivered("app_unreachable", str(broken)))
        return ()
    if not keys:
        call.settle_all(Undelivered("app_unreachable", f"The workspace {workspace} has no signing key."))
    return keys


def _invocations(call: Call) -> list[Invocation]:
    """What is still to be handed over, each with what is left of its lease."""
    now = trio.current_time()
    invocations: list[Invocation] = []
    for inflight in list(call.open_runs.values()):
        invocation = inflight.handover.invocation
        left_seconds = inflight.lease_ends_at - now
        # An engine that froze since the claim must not hand over a lease that is over: the app counts from its receipt of the call.
        if left_seconds <= 0:
            inflight.settle(HandedBack())
            continue
        if left_seconds < invocation.lease_seconds:
            invocation = msgspec.structs.replace(invocation, lease_seconds=left_seconds)
        invocations.append(invocation)
    return invocations


def _note_result(engine: EngineContext, call: Call, result: CallResult | None) -> None:
    match result:
        case NotDelivered():
            is_answered = False
        case Died():
            is_answered = result.is_answered
        case _:
            return
    workspace_id = call.inflights[0].workspace_id
    engine.inflight.pace(workspace_id).failed(call.sent_at, trio.current_time(), is_answered=is_answered)


async def _free_lanes(engine: EngineContext, workspace_id: int) -> None:
    """A call got through: lanes that were held because the app could not be reached are let go."""
    try:
        if await engine.database.transact(free_lanes, workspace_id):
            engine.hints.runs_are_due()
    except (DatabaseUnavailable, TransactionConflict):
        engine.hints.note_held(workspace_id)
