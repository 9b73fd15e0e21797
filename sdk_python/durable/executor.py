"""Drives one handler through one invocation: replays the memo, runs bodies, sends ops, delivers results, ends.

Owns the order of things (protocol section 7): results in commit order and only to an idle handler, no body
before all that was asked for is delivered, one checkpoint of the run in flight at a time, the lease, the end.
Never touches tasks, threads or sockets itself: the runtime's scope and host, and the sender, do.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextvars import copy_context
from typing import Any, Final, cast

from msgspec import UNSET

from durable.current_step import CurrentStep, running_step
from durable.errors import EngineUnreachable, Parked
from durable.function import Function
from durable.invocation_end import ParkSwallowed, ops_of_fault, ops_of_outcome, ops_of_parking, refusal_op
from durable.lease import Lease
from durable.memo import Memo, StepIds
from durable.open_step import Body, OpenStep, StepState
from durable.outbox import Outbox
from durable.read_memo import read_entry, read_event
from durable.replay_log import is_replaying
from durable.run_body import run_body
from durable.runtime import Host, Outcome, Scope
from durable.sender import Sender
from durable.step_faults import (
    ambiguous_step_id,
    called_after_the_end,
    called_in_a_body,
    cancelled_from_outside,
    code_mismatch,
)
from durable.step_id import check_step_id
from durable.wire import (
    CheckpointEntry,
    Ended,
    EntryAnswer,
    FailOp,
    Invocation,
    Kind,
    MemoEntry,
    Op,
    StepErrorOp,
    StepOp,
)

logger: Final = logging.getLogger("durable")

OUTSIDE_GRACE_SECONDS: Final = 0.1
"""How long an await that is no step may hold back the end of an invocation."""


class Execution:
    """One invocation under way. All methods run on the runtime's loop; none blocks."""

    def __init__(self, function: Function, invocation: Invocation, sender: Sender, received_at: float, scope: Scope) -> None:
        self.function = function
        self.invocation = invocation
        self.event = read_event(invocation)
        self.is_unwinding = False
        self.has_ended = False
        self._sender = sender
        self._scope = scope
        self._signal = scope.new_signal()
        self._memo = Memo(invocation.steps)
        self.is_replaying = self._memo.is_replaying
        self._ids = StepIds()
        self._open: dict[str, OpenStep] = {}
        self._planned: dict[str, OpenStep] = {}
        self._backing_off: dict[str, OpenStep] = {}
        self._busy_count = 0  # steps that are RUNNING or REPORTED
        self._waiting_count = 0  # steps that are WAITING
        self._retries = {retry.id: retry for retry in invocation.retries}
        self._engine_waits = {wait.id: wait.kind for wait in invocation.waiting}
        self._outbox = Outbox()
        self._in_flight: list[Op] | None = None
        self._needs_news = False
        self._lease = Lease(received_at, invocation.lease_seconds)
        self._warned_of: set[str] = set()
        self._handler_is_active = True
        self._fault: BaseException | None = None
        self._refusal: FailOp | None = None
        self._is_over = False  # stale or cancelled: the engine wants to hear nothing more
        self._breakage: Exception | None = None  # the sender is broken: a bug, which the caller must hear of
        self._is_cut_off = False  # the engine did not answer: tell what is left in the reply
        self._host: Host = scope.new_host(self)

    # The drive.

    async def drive(self) -> Ended | None:
        """Start the handler and go on until the invocation has an end."""
        context = copy_context()
        # The handler's tasks inherit the context; what they find there must change with the replay.
        context.run(is_replaying.set, cast(bool, _Replay(self)))
        self._host.start(self._signal, context)
        while True:
            is_idle = await self._host.until_idle()
            if self._must_stop():
                break
            if not is_idle:
                self._flush()
                continue
            self._handler_is_active = False
            if self._deliver_next():
                continue
            self._wake_retries()
            self._start_bodies()
            self._flush()
            if self._is_quiet():
                if await self._is_parked():
                    break
            else:
                await self._signal.wait(self._next_due_at())
        return await self._end()

    def _must_stop(self) -> bool:
        return (
            self._host.outcome is not None
            or self._fault is not None
            or self._refusal is not None
            or self._is_over
            or self._is_cut_off
            or self._breakage is not None
        )

    def stop(self) -> None:
        """End at once. After a cancellation from outside the handler's steps must record nothing."""
        self.is_unwinding = True
        self._host.stop()

    # Delivery.

    def _deliver_next(self) -> bool:
        """Give the handler the next result that it asked for. False when there is none."""
        while (entry := self._memo.take_next_asked()) is not None:
            step = self._open.get(entry.id)
            if step is None:
                continue  # given up since it asked
            self._memo.note_delivered(entry.position)
            self.is_replaying = self.is_replaying and self._memo.is_replaying
            self._close(step)
            step.is_delivered = True
            self._handler_is_active = True
            assert step.reply is not None
            step.reply.deliver(read_entry(step, entry))
            return True
        return False

    # Bodies.

    def _wake_retries(self) -> None:
        if not self._backing_off:
            return
        now = time.monotonic()
        for step in [step for step in self._backing_off.values() if step.due_at <= now]:
            del self._backing_off[step.id]
            step.state = StepState.PLANNED
            self._planned[step.id] = step

    def _start_bodies(self) -> None:
        """Start what is planned, in call order, unless the lease is too short to start anything.

        The drive comes here only when nothing is left to deliver.
        """
        if not self._planned:
            return
        if not self._lease.allows_start(time.monotonic()):
            # The answer to whatever is on its way renews the lease as well.
            self._needs_news = self._in_flight is None
            return
        self._lease.note_start()
        self.is_replaying = False
        planned, self._planned = self._planned, {}
        for step in planned.values():
            assert step.body is not None
            step.state = StepState.RUNNING
            self._busy_count += 1
            current = CurrentStep(self.invocation.run_id, step.id, step.attempt, self.invocation.generation)
            context = step.body.context.copy()
            context.run(running_step.set, current)
            step.job = self._scope.start(self._run_body, step, step.body, self._memo.seen, context=context)

    async def _run_body(self, step: OpenStep, body: Body, seen: int) -> None:
        """Run the body and put its op in the outbox."""
        op = await run_body(self._scope, step, body, seen, lambda error: self._is_of_the_body(error, step))
        if self._open.get(step.id) is not step or step.state is not StepState.RUNNING:
            return  # given up meanwhile, nobody wants the result
        step.state = StepState.REPORTED
        step.job = None
        self._outbox.ops.append(op)
        self._signal.set()

    def _is_of_the_body(self, error: BaseException, step: OpenStep) -> bool:
        """Whether the body failed, rather than was cancelled from here."""
        if isinstance(error, asyncio.CancelledError):
            # A body can raise it by itself, when it awaits a task that somebody else cancelled.
            return not self.is_unwinding and self._open.get(step.id) is step and step.state is StepState.RUNNING
        return isinstance(error, Exception | SystemExit)

    # Checkpoints.

    def _flush(self) -> None:
        """Start a checkpoint if something has to reach the engine before the invocation can go on or end."""
        if self._in_flight is not None:
            return
        outbox = self._outbox
        now = time.monotonic()
        if self._busy_count and self._waiting_count and now >= self._lease.news_due_at:
            self._needs_news = True
        if outbox.is_urgent or self._needs_news or (outbox.is_prompt and self._busy_count):
            self._in_flight = outbox.take()
            self._needs_news = False
            self._lease.note_asked(now)
            self._scope.start(self._checkpoint, self._in_flight)

    async def _checkpoint(self, ops: list[Op]) -> None:
        invocation = self.invocation
        entry = CheckpointEntry(
            run_id=invocation.run_id, generation=invocation.generation, known=self._memo.known, ops=ops, ends=False
        )
        sent_at = time.monotonic()
        deadline = self._lease.checkpoint_deadline(sent_at)
        try:
            answer = await self._sender.submit(entry, deadline=deadline)
        except EngineUnreachable as error:
            logger.warning("run %s: %s; the results travel in the reply instead", invocation.run_id, error)
            self._is_cut_off = True
        except Exception as error:
            self._breakage = error
        else:
            self._take_answer(answer, ops, sent_at)
            self._in_flight = None
        self._signal.set()

    def _take_answer(self, answer: EntryAnswer, ops: list[Op], sent_at: float) -> None:
        match answer.status:
            case "ok":
                pass
            case "refused":
                self._refusal = refusal_op(answer)
                return
            case _:
                self._is_over = True
                return
        self._lease.renew(sent_at, None if answer.lease_seconds is UNSET else answer.lease_seconds)
        for entry in answer.resolved:
            self._memo.add(entry)
            step = self._open.get(entry.id)
            if step is not None and step.state is not StepState.RESOLVED:
                self._resolve(step, entry)
        for retry in answer.retries:
            self._retries[retry.id] = retry
            step = self._open.get(retry.id)
            if step is not None and step.state is StepState.REPORTED:
                self._leave_state(step)
                self._back_off(step, retry.attempt, retry.in_seconds)
        for step_id in answer.abandoned:
            step = self._open.get(step_id)
            if step is not None and step.state is not StepState.RESOLVED:
                self._leave_state(step)
                step.state = StepState.ABANDONED
        self._note_unanswered(ops)

    def _note_unanswered(self, ops: list[Op]) -> None:
        # A reported step that the engine neither committed nor retries would hold the handler for ever. Ending with
        # `yield` asks for the memo afresh.
        for op in ops:
            if isinstance(op, StepOp | StepErrorOp):
                step = self._open.get(op.id)
                if step is not None and step.state is StepState.REPORTED:
                    logger.warning("run %s: the engine did not say what became of step %r", self.invocation.run_id, op.id)
                    self._is_cut_off = True

    # What the handler does. Called by the step tools, through the host.

    def open_step(
        self,
        kind: Kind,
        given_id: str,
        *,
        read: Callable[[Any], Any],
        body: Body | None = None,
        make_op: Callable[[str], Op] | None = None,
        wait_seconds: float | None = None,
    ) -> OpenStep:
        """The handler calls a step. Raises what the handler must see at once; else the reply brings the result."""
        self._check_callable_here(given_id)
        check_step_id(given_id)
        if self._ids.is_open(given_id):
            raise self.fail_with(ambiguous_step_id(given_id))
        step = OpenStep(given_id, self._ids.take(given_id), kind, read, body)
        self._signal.set()
        entry = self._memo.entry(step.id)
        self._check_kind(step, entry.kind if entry is not None else self._engine_waits.get(step.id, kind))
        self._open[step.id] = step
        if entry is not None:
            self._resolve(step, entry)
        elif body is not None:
            retry = self._retries.get(step.id)
            if retry is None:
                self._planned[step.id] = step
            else:
                self._back_off(step, retry.attempt, retry.in_seconds)
        else:
            assert make_op is not None
            self._plan_op(step, make_op, wait_seconds)
        return step

    def _check_callable_here(self, given_id: str) -> None:
        if running_step.get() is not None:
            raise called_in_a_body(given_id)
        if self.has_ended:
            raise called_after_the_end(given_id)
        if self.is_unwinding:
            raise Parked()

    def _check_kind(self, step: OpenStep, known_kind: str) -> None:
        if known_kind != step.kind:
            self._ids.close(step.given_id)
            raise self.fail_with(code_mismatch(step.id, known_kind, step.kind))

    def _plan_op(self, step: OpenStep, make_op: Callable[[str], Op], wait_seconds: float | None) -> None:
        is_wait = step.kind != "send_events"
        step.state = StepState.WAITING if is_wait else StepState.REPORTED
        if is_wait:
            self._waiting_count += 1
        else:
            self._busy_count += 1
        step.engine_has_it = step.id in self._engine_waits
        if not step.engine_has_it:
            self._outbox.ops.append(make_op(step.id))
            self._outbox.is_prompt = True
            if wait_seconds is not None:
                self._lease.note_wait(time.monotonic(), wait_seconds)

    def cancelled(self, step: OpenStep) -> BaseException | None:
        """The await of this step was cancelled: what to raise at the step, None for the cancellation itself.

        A delivered result that ends a task group cancels its siblings in the same turns, before the handler is idle
        again. A cancellation that arrives at an idle handler comes from a clock or another thing outside of steps,
        and would come at another moment, or never, on replay.
        """
        if self.is_unwinding or self._must_stop():
            return Parked()
        if step.is_delivered:
            return None
        if self._handler_is_active:
            self._abandon(step)
            return None
        return self.fail_with(cancelled_from_outside(step.id))

    def fail_with(self, fault: BaseException) -> BaseException:
        """Let the function fail with this, whatever the handler does with it."""
        if self._fault is None:
            self._fault = fault
        self._signal.set()
        return fault

    def _abandon(self, step: OpenStep) -> None:
        is_resolved = step.state is StepState.RESOLVED or step.state is StepState.ABANDONED
        if step.body is None or step.state is StepState.REPORTED:
            self._outbox.drop(step.id)
        if step.job is not None:
            step.job.cancel()
        self._planned.pop(step.id, None)
        self._backing_off.pop(step.id, None)
        self._close(step)
        self._signal.set()
        if not is_resolved:
            self._outbox.abandon(step.id)
            # Soon, because a wait that stays open could take the event that a later wait should have.
            self._outbox.is_prompt = True

    # States.

    def _resolve(self, step: OpenStep, entry: MemoEntry) -> None:
        if step.state is StepState.RUNNING and step.job is not None:
            step.job.cancel()
        self._leave_state(step)
        self._planned.pop(step.id, None)
        self._backing_off.pop(step.id, None)
        if entry.abandoned:
            step.state = StepState.ABANDONED
        elif entry.data is UNSET and entry.error is UNSET and step.result is None:
            logger.warning("run %s: the engine told of step %r without its result", self.invocation.run_id, step.id)
            step.state = StepState.WAITING
            self._waiting_count += 1
            self._is_cut_off = True  # the next invocation brings the whole memo
        else:
            step.state = StepState.RESOLVED
            self._memo.ask(step.id)

    def _back_off(self, step: OpenStep, attempt: int, in_seconds: float) -> None:
        step.attempt = attempt
        step.due_at = time.monotonic() + in_seconds
        if in_seconds <= 0:
            step.state = StepState.PLANNED
            self._planned[step.id] = step
        else:
            step.state = StepState.BACKING_OFF
            self._backing_off[step.id] = step

    def _leave_state(self, step: OpenStep) -> None:
        if step.state in (StepState.RUNNING, StepState.REPORTED):
            self._busy_count -= 1
        elif step.state is StepState.WAITING:
            self._waiting_count -= 1

    def _close(self, step: OpenStep) -> None:
        self._leave_state(step)
        del self._open[step.id]
        self._ids.close(step.given_id)

    # The end.

    def _is_quiet(self) -> bool:
        """Nothing runs here and nothing is on its way: only the engine, or the handler itself, brings this run further."""
        return not self._busy_count and not self._planned and self._in_flight is None

    async def _is_parked(self) -> bool:
        """Whether the invocation ends because all that the handler waits for are steps.

        Another await gets a moment, then a warning with its line. With a step open the invocation ends all the same;
        without one there is nothing that the engine could wait for, so it goes on until the handler does.
        """
        outside = self._host.outside_waits()
        if not outside and self._open:
            return True
        if await self._signal.wait(time.monotonic() + OUTSIDE_GRACE_SECONDS):
            return False  # the handler moved: the drive looks again
        for place in outside:
            if place not in self._warned_of:
                self._warned_of.add(place)
                logger.warning(
                    "run %s, function %s: the handler awaits something that is no step at %s. It is not remembered and is "
                    "begun again at the next invocation; put it into a step.",
                    self.invocation.run_id, self.function.id, place,
                )  # fmt: skip
        if self._open:
            return True
        await self._signal.wait(None)
        return False

    def _next_due_at(self) -> float | None:
        due_at = min((step.due_at for step in self._backing_off.values()), default=float("inf"))
        if self._in_flight is None and self._busy_count and self._waiting_count:
            due_at = min(due_at, self._lease.news_due_at)
        return None if due_at == float("inf") else due_at

    async def _end(self) -> Ended | None:
        """Stop what still runs and say how the invocation ended."""
        outcome = self._host.outcome
        is_swallowed = False
        self.is_unwinding = True
        if outcome is None:
            is_swallowed = not await self._host.unwind()
        else:
            await self._host.unwind()
        for step in self._open.values():
            if step.job is not None:
                step.job.cancel()
        while self._in_flight is not None and not self._is_cut_off and not self._is_over and self._breakage is None:
            await self._signal.wait(None)
        if self._breakage is not None:
            raise self._breakage
        if self._is_over:
            return None
        return Ended(
            run_id=self.invocation.run_id,
            generation=self.invocation.generation,
            known=self._memo.known,
            ops=self._last_ops(outcome, is_swallowed),
        )

    def _last_ops(self, outcome: Outcome | None, is_swallowed: bool) -> list[Op]:
        if self._refusal is not None:
            return [self._refusal]
        unsent = [*(self._in_flight or ()), *self._outbox.take()]
        if self._fault is not None:
            return ops_of_fault(unsent, self._fault)
        if outcome is not None:
            return ops_of_outcome(unsent, outcome)
        if is_swallowed:
            return ops_of_fault(unsent, ParkSwallowed())
        return ops_of_parking(unsent, is_cut_off=self._is_cut_off)


class _Replay:
    """True while the handler of this execution replays; stands in the context of its tasks."""

    def __init__(self, execution: Execution) -> None:
        self._execution = execution

    def __bool__(self) -> bool:
        return self._execution.is_replaying
