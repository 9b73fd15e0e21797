"""One invocation: waits for what its call brings of it, and reports what became of it. A task with its own cancel scope.

Through that scope end the step's timeout, the loss of the lease, and the drain, each with its own outcome. It writes nothing itself:
every outcome goes to the reports' writer, fenced by the run's generation.
"""

from __future__ import annotations

import msgspec
import structlog
import trio
from msgspec import Raw

from engine.core.outcome import CallDied, HandedBack, Interrupted, Outcome, Reported, Undelivered
from engine.nursery.call import Call
from engine.nursery.context import EngineContext
from engine.nursery.inflight import Inflight
from engine.store.apply_outcomes import RunReport
from engine.store.crash_points import crash_point
from engine.store.group_writer import WriterOverloaded
from protocol.ops import Fail
from protocol.requests import EntryAnswer

log = structlog.get_logger(__name__)

# An outcome is not given up because many rows wait; its lease is held while it waits, too.
OVERLOADED_SECONDS = 0.25


async def run_invocation(engine: EngineContext, call: Call, inflight: Inflight) -> None:
    """Execute one lease, from its hand-over in `call` to the applied outcome. It is counted among those under way already."""
    try:
        with inflight.scope:
            await inflight.settled.wait()
        outcome = inflight.outcome or _outcome_of_ending(engine, call, inflight)
        call.leave(inflight)
        if outcome is not None:
            # From here on the engine holds the lease, also where the app held it while it executed.
            inflight.outcome = outcome
            if isinstance(outcome, Undelivered):
                engine.hints.note_held(inflight.workspace_id)
            crash_point("reply_before_apply")
            await report(engine, inflight, outcome)
            crash_point("applied_before_answer")
    finally:
        engine.inflight.remove(inflight)


def _outcome_of_ending(engine: EngineContext, call: Call, inflight: Inflight) -> Outcome | None:
    """What became of an invocation whose scope was cancelled; None when there is nothing to report any more."""
    match inflight.end_cause:
        case "drain":
            return HandedBack()
        case "lease_lost":
            return None
        case None:
            engine.inflight.pace(inflight.workspace_id).failed(
                call.sent_at, trio.current_time(), is_answered=inflight.has_started or call.is_answered
            )
            seconds = inflight.step_timeout_seconds
            return CallDied("invocation_timeout", f"No step of the run ended and nothing was reported for {seconds:g} s.")


async def report(engine: EngineContext, inflight: Inflight, outcome: Outcome) -> None:
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
