"""One invocation: hands the run to its app in a signed call, and reports what became of it. A task with its own cancel scope.

Through that scope end the step's timeout, the loss of the lease, and the drain, each with its own outcome. It writes nothing itself:
every outcome goes to the reports' writer, fenced by the run's generation.
"""

from __future__ import annotations

import msgspec
import structlog
import trio
from msgspec import Raw

from engine.core.outcome import CallDied, HandedBack, Interrupted, Outcome, Reported, Undelivered
from engine.nursery.context import EngineContext
from engine.nursery.inflight import Inflight
from engine.store.apply_outcomes import RunReport
from engine.store.crash_points import crash_point
from engine.store.database import DatabaseUnavailable, TransactionConflict
from engine.store.group_writer import WriterOverloaded
from engine.store.hold_lanes import free_lanes
from engine.store.read_invocations import Handover
from engine.store.sealing import SealBroken
from engine.transport.app_client import CallResult, Died, Finished, Line, NotDelivered
from protocol.calls import Ended, Started
from protocol.manifest import FunctionConfig, Workspace
from protocol.ops import Fail, UnknownFunction
from protocol.requests import EntryAnswer, RefusedEntry

log = structlog.get_logger(__name__)

# Beyond the step's own timeout, which the SDK enforces: the engine's clock only catches apps that do not.
STEP_TIMEOUT_MARGIN_SECONDS = 30.0
# An outcome is not given up because many rows wait; its lease is held while it waits, too.
OVERLOADED_SECONDS = 0.25


def take_up(engine: EngineContext, handover: Handover, read_at: float | None = None) -> Inflight:
    """Count a lease among those under way. `run_invocation` must follow. `read_at`: when the handover began to be read."""
    config = msgspec.json.decode(handover.config, type=FunctionConfig)
    begun_at = trio.current_time() if read_at is None else read_at
    inflight = Inflight(
        handover, config.step_timeout_seconds + STEP_TIMEOUT_MARGIN_SECONDS, begun_at + handover.invocation.lease_seconds
    )
    engine.inflight.add(inflight)
    return inflight


async def run_invocation(engine: EngineContext, inflight: Inflight) -> None:
    """Execute one lease, from the call to the applied outcome."""
    handover = inflight.handover
    try:
        outcome = await _call(engine, inflight)
        if outcome is not None:
            if isinstance(outcome, Undelivered):
                engine.hints.note_held(handover.lease.workspace_id)
            crash_point("reply_before_apply")
            await _report(engine, inflight, outcome)
            crash_point("applied_before_answer")
    finally:
        if engine.inflight.remove(inflight):
            engine.hints.run_due.give()


async def _call(engine: EngineContext, inflight: Inflight) -> Outcome | None:
    """The outcome to report; None when there is nothing to report any more."""
    handover = inflight.handover
    if handover.serve_url is None:
        return Undelivered("app_unreachable", "The app has not told the engine its URL.")
    workspace = Workspace(handover.app, handover.env)
    reported: list[Outcome] = []

    async def on_line(line: Line) -> None:
        if line.run_id != handover.invocation.run_id or line.generation != handover.lease.generation:
            reported.append(CallDied("foreign_reply", f"The app answered for run {line.run_id}, which this call did not carry."))
            inflight.scope.cancel()
        elif reported:
            # It has ended; an app that says more, or goes on saying it, is not listened to.
            inflight.scope.cancel()
        elif isinstance(line, Started):
            if inflight.has_started:
                return
            inflight.has_started = True
            crash_point("during_call")
            inflight.news()
            await _note_reached(engine, inflight)
        elif isinstance(line, Ended):
            reported.append(_outcome_of(line))
        elif isinstance(line, RefusedEntry):
            reported.append(CallDied(line.error.code, f"The app's reply breaks the protocol: {line.error.message}"))

    result: CallResult | None = None
    with inflight.scope:
        inflight.news()
        try:
            keys = (await engine.keyring.live_keys(handover.app, handover.env)).keys
        except DatabaseUnavailable:
            return HandedBack()
        except SealBroken as broken:
            return Undelivered("app_unreachable", str(broken))
        if not keys:
            return Undelivered("app_unreachable", f"The workspace {workspace} has no signing key.")
        # An engine that froze since the claim must not hand over a lease that is over: the app counts from its receipt of the call.
        left_seconds = inflight.lease_ends_at - trio.current_time()
        if left_seconds <= 0:
            return HandedBack()
        invocation = msgspec.structs.replace(
            handover.invocation, lease_seconds=min(left_seconds, handover.invocation.lease_seconds)
        )
        result = await engine.apps.invoke(handover.serve_url, workspace, keys, [invocation], on_line)
    if reported:
        return reported[0]
    return _outcome_without_line(inflight, result)


def _outcome_of(line: Ended) -> Outcome:
    if any(isinstance(op, UnknownFunction) for op in line.ops):
        return Undelivered("unknown_function", "The app that answers has no such function.", others_succeed=True)
    return Reported(tuple(line.ops), line.known, ends=True)


def _outcome_without_line(inflight: Inflight, result: CallResult | None) -> Outcome | None:
    match result:
        case Finished():
            return CallDied("no_end", "The app closed the call without saying how the invocation ended.")
        case NotDelivered(detail, retry_after_seconds):
            return Undelivered("app_unreachable", detail, retry_after_seconds)
        case Died(code, message):
            return CallDied(code, message)
        case None if inflight.end_cause == "drain":
            return HandedBack()
        case None if inflight.end_cause == "lease_lost":
            return None
        case None:
            seconds = inflight.step_timeout_seconds
            return CallDied("invocation_timeout", f"No step of the run ended and nothing was reported for {seconds:g} s.")


async def _report(engine: EngineContext, inflight: Inflight, outcome: Outcome) -> None:
    """Apply the outcome; what the engine refuses of it fails the function with the reason."""
    answer = await _submit(engine, inflight, outcome)
    if answer.status == "refused" and isinstance(outcome, Reported) and answer.error:
        words = {"name": "DurableError", "message": answer.error.message, "code": answer.error.code}
        fail = Fail(Raw(msgspec.json.encode(words)), retriable=answer.error.code == "code_mismatch")
        answer = await _submit(engine, inflight, Reported((fail,), outcome.known, ends=True))
    if answer.status not in ("ok", "cancelled"):
        log.info("report_not_applied", run_id=str(inflight.run_id), status=answer.status)


async def _submit(engine: EngineContext, inflight: Inflight, outcome: Outcome) -> EntryAnswer:
    lease = inflight.handover.lease
    while True:
        try:
            return await engine.reports.submit(RunReport(lease.workspace_id, lease.run_id, lease.generation, outcome))
        except WriterOverloaded:
            await trio.sleep(OVERLOADED_SECONDS)
        except Exception as error:
            # What one run brought must not end the engine and all others with it.
            log.error("report_failed", run_id=str(inflight.run_id), error=repr(error), exc_info=error)
            if isinstance(outcome, Interrupted):
                # The reaper takes the run back.
                return EntryAnswer(str(lease.run_id), lease.generation, "stale")
            outcome = Interrupted("engine_died")


async def _note_reached(engine: EngineContext, inflight: Inflight) -> None:
    """A call got through: lanes that were held because the app could not be reached are let go."""
    workspace_id = inflight.handover.lease.workspace_id
    if not engine.hints.is_held(workspace_id):
        return
    engine.hints.forget_held(workspace_id)
    try:
        if await engine.database.transact(free_lanes, workspace_id):
            engine.hints.runs_are_due()
    except (DatabaseUnavailable, TransactionConflict):
        engine.hints.note_held(workspace_id)
