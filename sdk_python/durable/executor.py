"""Drives one handler through one invocation: replays the memo, runs bodies, sends ops, delivers results, ends.

Owns the order of things (protocol section 7): results in commit order and only to an idle handler, no body before all that
was asked for is delivered and all that was delivered is acknowledged, one checkpoint of the run in flight at a time, the
lease, the end. Never touches tasks, threads or sockets itself: the runtime's scope and host, and the sender, do.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextvars import copy_context
from typing import Any, Final

from msgspec import UNSET

from durable.current_step import CurrentStep, running_step
from durable.errors import EngineUnreachable, Parked
from durable.fetched_values import FetchedValues
from durable.function import Function
from durable.invocation_end import ParkSwallowed, last_ops, refusal_op
from durable.lease import Lease
from durable.open_step import Body, OpenStep, StepState
from durable.open_steps import OpenSteps
from durable.outbox import Outbox
from durable.read_memo import read_entry, read_event, read_result
from durable.replay_log import Replay, is_replaying
from durable.run_body import run_body, store_result
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
from durable.values import Values
from durable.wire import (
    AliveRun,
    AliveRunAnswer,
    CheckpointEntry,
    Ended,
    EntryAnswer,
    FailOp,
    Invocation,
    Kind,
    Op,
    StepOp,
)

logger: Final = logging.getLogger("durable")

OUTSIDE_GRACE_SECONDS: Final = 0.1
"""How long an await that is no step may hold back the end of an invocation."""
HOLD_SECONDS: Final = 0.002
"""How long a result that the handler has got waits for a handler that is at work, to travel with what that does next."""


class Execution:
    """One invocation under way. All methods but `alive_run` run on the runtime's loop; none blocks."""

    def __init__(
        self,
        function: Function,
        invocation: Invocation,
        sender: Sender,
        received_at: float,
        scope: Scope,
        values: Values | None = None,
    ) -> None:
        self.function = function
        self.invocation = invocation
        self.event = read_event(invocation)
        self.is_unwinding = False
        self.has_ended = False
        self._sender = sender
        self._scope = scope
        self._signal = scope.new_signal()
        self._values = values
        self._fetched = None if values is None else FetchedValues(invocation.run_id, values)
        self._is_fetching = False
        self._outbox = Outbox()
        self._steps = OpenSteps(invocation, self._outbox, self._fetched)
        self._memo = self._steps.memo
        self.is_replaying = self._memo.is_replaying
        self._sent_at = received_at
        self._hold_ends_at = 0.0
        self._needs_news = False
        self._lease = Lease(received_at, invocation.lease_seconds)
        self._warned_of: set[str] = set()
        self._handler_is_active = True
        self._is_advancing = False
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
        context.run(is_replaying.set, Replay(self))
        self._host.start(self._signal, context)
        while True:
            is_idle = self._host.is_idle() or await self._host.until_idle(self._held_until())
            if self._must_stop():
                break
            self._signal.clear()
            if not is_idle:
                if time.monotonic() >= (self._held_until() or 0.0):
                    self._flush(is_idle=False)
                continue
            self._handler_is_active = False
            if self._advance():
                continue
            if self._must_stop():
                break
            if not self._is_quiet():
                await self._signal.wait(self._next_due_at())
            elif await self._is_parked():
                break
        return await self._end()

    def _must_stop(self) -> bool:
        return (
            self._host.outcome is not None
            or self._fault is not None
            or self._refusal is not None
            or self._is_over
            or self._is_cut_off
            or self._steps.lacks_news
            or self._breakage is not None
        )

    def _advance(self) -> bool:
        """All that can be done with an idle handler. True when it got a result, and so is at work again."""
        self._is_advancing = True
        try:
            if self._deliver_next() or self._deliver_early():
                return True
            self._steps.wake_retries()
            self._start_bodies()
            self._flush()
            return False
        finally:
            self._is_advancing = False

    def _nudge(self) -> None:
        """Something has come from elsewhere than the handler: go on here and now if it is idle; else the drive does."""
        if self._is_advancing or self.is_unwinding or self._must_stop() or not self._host.is_idle():
            self._signal.set()
            return
        self._handler_is_active = False
        try:
            is_at_work = self._advance()
        except Exception as error:
            self._breakage = error
            is_at_work = True
        if is_at_work or not self._steps.busy_count or self._steps.waiting_count or self._steps.backing_off:
            self._signal.set()

    def stop(self) -> None:
        """End at once. The handler's steps record nothing any more."""
        self.is_unwinding = True
        self._host.stop()

    def close(self) -> None:
        """All of it is over; steps that are called now are refused."""
        self.has_ended = True
        del self._host  # else the two hold each other, until the garbage collector comes

    # Delivery.

    def _deliver_next(self) -> bool:
        """Give the handler the next result that it asked for. False when there is none, or its value is on its way."""
        while (entry := self._memo.next_asked) is not None:
            step = self._steps.open.get(entry.id)
            fetched = None
            if step is not None and step.result is None and self._fetched is not None:
                if self._fetched.is_missing(entry):
                    self._start_fetch()
                    return False
                fetched = self._fetched.take(entry)
            self._memo.take_next_asked()
            if step is None:
                continue  # given up since it asked
            self._memo.note_delivered(entry.position)
            self.is_replaying = self.is_replaying and self._memo.is_replaying
            self._deliver(step, read_entry(step, entry, fetched))
            return True
        return False

    def _deliver_early(self) -> bool:
        """Give the handler the result of its only open step before the engine knows of it (protocol section 7.3).

        No other result can come before it, now or on replay. Whether there is an error or a retry is the engine's to
        say, so those wait for its answer; so do sync handlers, which no cancellation could stop after it.
        """
        if len(self._steps.open) != 1 or self._steps.engine_waits or not self.function.is_async:
            return False
        op = self._outbox.lone_result()
        step = self._steps.open.get(op.id) if op is not None else None
        if op is None or step is None or step.state is not StepState.REPORTED:
            return False
        self._outbox.note_delivered(op)
        self._hold_ends_at = time.monotonic() + HOLD_SECONDS
        self._deliver(step, read_result(step))
        return True

    def _deliver(self, step: OpenStep, outcome: Outcome) -> None:
        self._steps.close(step)
        step.is_delivered = True
        self._handler_is_active = True
        assert step.reply is not None
        step.reply.deliver(outcome)

    def _held_until(self) -> float | None:
        return self._hold_ends_at if self._outbox.holds_delivered else None

    def _start_fetch(self) -> None:
        """Ask for the values of all entries that the handler has asked for."""
        if not self._is_fetching and self._fetched is not None and self._fetched.has_wanted:
            self._is_fetching = True
            self._scope.start(self._fetch_wanted, self._fetched, context=copy_context())

    async def _fetch_wanted(self, fetched: FetchedValues) -> None:
        try:
            await fetched.fetch()
        except Exception as error:
            self._break_off(error)
        self._is_fetching = False
        self._nudge()

    # Bodies.

    def _start_bodies(self) -> None:
        """Start what is planned, in call order, unless results are undelivered or unacknowledged, or the lease is short."""
        if not self._steps.planned or self._outbox.unacknowledged or self._memo.next_asked is not None:
            return
        now = time.monotonic()
        if not self._lease.allows_start(now):
            # The answer to whatever is on its way renews the lease as well.
            self._needs_news = self._outbox.in_flight is None
            return
        self._lease.note_start()
        self.is_replaying = False
        invocation, seen = self.invocation, self._memo.seen
        for step in self._steps.take_planned(now):
            assert step.body is not None
            context = step.body.context.copy()
            context.run(running_step.set, CurrentStep(invocation.run_id, step.id, step.attempt, invocation.generation))
            step.job = self._scope.start(self._run_body, step, step.body, seen, context=context)

    async def _run_body(self, step: OpenStep, body: Body, seen: int) -> None:
        """Run the body and put its op in the outbox."""
        op = await run_body(self._scope, step, body, seen, self._is_of_the_body)
        if self._values is not None and isinstance(op, StepOp) and self._steps.is_running(step):
            try:
                op = await store_result(self._values, self.invocation.run_id, op)
            except Exception as error:
                self._break_off(error)
        self._scope.ended(step.job)
        if not self._steps.is_running(step):
            return  # given up meanwhile, nobody wants the result
        self._steps.report(step, op)
        self._nudge()

    def _is_of_the_body(self, error: BaseException, step: OpenStep) -> bool:
        """Whether the body failed, rather than was cancelled from here."""
        if isinstance(error, asyncio.CancelledError):
            # A body can raise it by itself, when it awaits a task that somebody else cancelled.
            return not self.is_unwinding and self._steps.is_running(step)
        return isinstance(error, Exception | SystemExit)

    # Checkpoints, and other news of the engine.

    def _flush(self, *, is_idle: bool = True) -> None:
        """Send a checkpoint if something has to reach the engine before the invocation can go on or end."""
        outbox = self._outbox
        if outbox.in_flight is not None:
            return
        if self._steps.busy_count and self._steps.waiting_count and time.monotonic() >= self._lease.news_due_at:
            self._needs_news = True
        if (
            outbox.is_urgent
            or self._needs_news
            or (outbox.is_prompt and self._steps.busy_count)
            # A result that the handler has travels with what the handler does next; here that waits for the answer.
            or (outbox.unacknowledged and (self._steps.planned or not is_idle))
        ):
            self._send()

    def _send(self) -> None:
        ops = self._outbox.take()
        self._needs_news = False
        self._sent_at = now = time.monotonic()
        self._lease.note_asked(now)
        try:
            entry = CheckpointEntry(self.invocation.run_id, self.invocation.generation, self._memo.known, ops)
            self._sender.submit_soon(entry, self._lease.checkpoint_deadline(now), self._take_reply)
        except Exception as error:
            self._breakage = error

    def _take_reply(self, reply: EntryAnswer | Exception) -> None:
        """What came of the checkpoint that is in flight."""
        if self.has_ended:
            return
        try:
            if isinstance(reply, Exception):
                raise reply
            self._take_answer(reply)
        except Exception as error:
            self._break_off(error)
        self._nudge()

    def _break_off(self, error: Exception) -> None:
        """The engine is away, or something broke that the caller must hear of: the invocation ends."""
        if isinstance(error, EngineUnreachable):
            logger.warning("run %s: %s; the results travel in the reply instead", self.invocation.run_id, error)
            self._is_cut_off = True
        else:
            self._breakage = error

    def _take_answer(self, answer: EntryAnswer) -> None:
        ops, self._outbox.in_flight = self._outbox.in_flight or [], None
        if answer.status == "ok":
            self._lease.renew(self._sent_at, None if answer.lease_seconds is UNSET else answer.lease_seconds)
            self._steps.take_answer(answer, ops)
        elif answer.status == "refused":
            self._refusal = refusal_op(answer)
        else:
            self._give_up()

    def _give_up(self) -> None:
        """Stale or cancelled: the handler is never resumed, not even by what it awaits besides steps."""
        self._is_over = True
        self.stop()

    # Alive.

    def alive_run(self, now: float) -> AliveRun:
        """What the process tells of this run while it lives. Any thread may ask, also while the loop is blocked."""
        return AliveRun(self.invocation.run_id, self.invocation.generation, self._memo.known, self._steps.open_seconds(now))

    def take_alive(self, answer: AliveRunAnswer) -> None:
        """What the engine said of this run: a longer lease, results, or that it is over."""
        if self.is_unwinding or self.has_ended or answer.generation != self.invocation.generation:
            return
        if answer.status == "ok":
            now = time.monotonic()
            if answer.lease_seconds is not UNSET:
                self._lease.renew(now, answer.lease_seconds)
            self._lease.note_asked(now)
            try:
                self._steps.take_resolved(answer.resolved)
            except Exception as error:
                self._break_off(error)
        else:
            self._give_up()
        self._nudge()

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
        steps = self._steps
        if steps.ids.is_open(given_id):
            raise self.fail_with(ambiguous_step_id(given_id))
        step = OpenStep(given_id, steps.ids.take(given_id), kind, read, body)
        self._signal.set()
        entry = self._memo.entry(step.id)
        engine_kind = steps.engine_waits.pop(step.id, None)
        self._check_kind(step, entry.kind if entry is not None else engine_kind or kind)
        steps.open[step.id] = step
        if entry is not None:
            steps.resolve(step, entry)
        elif body is not None:
            steps.plan_body(step)
        else:
            assert make_op is not None
            steps.plan_op(step, None if engine_kind else make_op(step.id))
            if wait_seconds is not None and not engine_kind:
                self._lease.note_wait(time.monotonic(), wait_seconds)
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
            self._steps.ids.close(step.given_id)
            raise self.fail_with(code_mismatch(step.id, known_kind, step.kind))

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
            self._steps.abandon(step)
            self._signal.set()
            return None
        return self.fail_with(cancelled_from_outside(step.id))

    def fail_with(self, fault: BaseException) -> BaseException:
        """Let the function fail with this, whatever the handler does with it."""
        self._fault = self._fault or fault
        self._signal.set()
        return fault

    # The end.

    def _is_quiet(self) -> bool:
        """Nothing runs here and nothing is on its way: only the engine, or the handler itself, brings this run further."""
        return not (self._steps.busy_count or self._steps.planned or self._outbox.in_flight is not None or self._memo.next_asked)

    async def _is_parked(self) -> bool:
        """Whether the invocation ends because all that the handler waits for are steps.

        Another await gets a moment, then a warning with its line. With a step open the invocation ends all the same;
        without one there is nothing that the engine could wait for, so it goes on until the handler does.
        """
        outside = self._host.outside_waits()
        if not outside and self._steps.open:
            return True
        if self._outbox.unacknowledged:
            self._send()  # what the handler awaits may take long
            return False
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
        if self._steps.open:
            return True
        await self._signal.wait(None)
        return False

    def _next_due_at(self) -> float | None:
        instants = [step.due_at for step in self._steps.backing_off.values()]
        if self._steps.busy_count and self._steps.waiting_count and self._outbox.in_flight is None:
            instants.append(self._lease.news_due_at)
        return min(instants, default=None)

    async def _end(self) -> Ended | None:
        """Stop what still runs and say how the invocation ended."""
        outcome = self._host.outcome
        self.is_unwinding = True
        is_swallowed = not await self._host.unwind() and outcome is None
        for step in self._steps.open.values():
            if step.job is not None:
                step.job.cancel()
        while self._outbox.in_flight is not None and not self._is_cut_off and not self._is_over and self._breakage is None:
            await self._signal.wait(None)
        if self._breakage is not None:
            raise self._breakage
        if self._is_over:
            return None
        ops = self._last_ops(outcome, is_swallowed)
        return Ended(self.invocation.run_id, self.invocation.generation, self._memo.known, ops)

    def _last_ops(self, outcome: Outcome | None, is_swallowed: bool) -> list[Op]:
        if self._refusal is not None:
            return [self._refusal]
        fault = ParkSwallowed() if self._fault is None and is_swallowed else self._fault
        is_cut_off, outbox = self._is_cut_off or self._steps.lacks_news, self._outbox
        return last_ops(outbox.unsent(), fault, outcome, outbox.unacknowledged, is_cut_off=is_cut_off)
