"""The open steps of one invocation: what the handler has called and not got yet, where each stands, and what the engine
has told of them.

Owns the states and every change between them, the memo and the order of delivery. Runs nothing, sends nothing.
"""

import logging
import time
from collections.abc import Iterable
from typing import Final

from msgspec import UNSET

from durable.fetched_values import FetchedValues
from durable.memo import Memo, StepIds
from durable.open_step import OpenStep, StepState
from durable.outbox import Outbox
from durable.wire import EntryAnswer, Invocation, MemoEntry, Op, Retry, SendEventsOp, StepErrorOp, StepOp

OPEN_SECONDS_MIN: Final = 0.001
"""What the engine is told of a body beyond its timeout: 0 would mean that none runs."""

logger: Final = logging.getLogger("durable")


class OpenSteps:
    """The steps by id, in the order of their calls. `busy_count`: those that are RUNNING or REPORTED."""

    def __init__(self, invocation: Invocation, outbox: Outbox, fetched: FetchedValues | None) -> None:
        self.memo = Memo(invocation.steps)
        self.ids = StepIds()
        self.open: dict[str, OpenStep] = {}
        self.planned: dict[str, OpenStep] = {}
        self.backing_off: dict[str, OpenStep] = {}
        self.busy_count = 0
        self.waiting_count = 0
        # Waits that the engine has and that the handler has not called yet.
        self.engine_waits = {wait.id: wait.kind for wait in invocation.waiting}
        # The engine left something out without which the handler would wait for ever: the whole memo has to come anew.
        self.lacks_news = False
        self._run_id = invocation.run_id
        self._outbox = outbox
        self._fetched = fetched
        self._retries = {retry.id: retry for retry in invocation.retries}

    # What the handler does.

    def plan_body(self, step: OpenStep) -> None:
        """Its body is to be started, at once or when its retry is due."""
        retry = self._retries.get(step.id)
        if retry is None:
            self.planned[step.id] = step
        else:
            self._back_off(step, retry)

    def plan_op(self, step: OpenStep, op: Op | None) -> None:
        """A wait, or events to send. Without an op: the engine has it."""
        if isinstance(op, SendEventsOp):
            step.state = StepState.REPORTED
            self.busy_count += 1
            self._outbox.add_result(op)
            return
        step.state = StepState.WAITING
        self.waiting_count += 1
        if op is not None:
            self._outbox.add_wait(op)

    def abandon(self, step: OpenStep) -> None:
        """The handler has given it up."""
        is_resolved = step.state is StepState.RESOLVED or step.state is StepState.ABANDONED
        if step.body is None or step.state is StepState.REPORTED:
            self._outbox.drop(step.id)
        if step.job is not None:
            step.job.cancel()
        self.planned.pop(step.id, None)
        self.backing_off.pop(step.id, None)
        self.close(step)
        if not is_resolved:
            self._outbox.abandon(step.id)

    # What bodies and clocks do.

    def wake_retries(self) -> None:
        """Plan those whose pause is over."""
        if not self.backing_off:
            return
        now = time.monotonic()
        for step in [step for step in self.backing_off.values() if step.due_at <= now]:
            del self.backing_off[step.id]
            step.state = StepState.PLANNED
            self.planned[step.id] = step

    def take_planned(self, now: float) -> list[OpenStep]:
        """Those whose bodies are to be started, in call order: they run from now on."""
        steps = list(self.planned.values())
        self.planned.clear()
        for step in steps:
            assert step.body is not None
            step.state = StepState.RUNNING
            step.body_ends_at = now + step.body.timeout_seconds
        self.busy_count += len(steps)
        return steps

    def is_running(self, step: OpenStep) -> bool:
        return step.state is StepState.RUNNING and self.open.get(step.id) is step

    def open_seconds(self, now: float) -> float:
        """How much longer the running bodies may take by their timeouts; 0 when none runs. Any thread may ask."""
        ends = [step.body_ends_at for step in list(self.open.values()) if step.state is StepState.RUNNING]
        # A body beyond its timeout (its loop is blocked) still runs, but keeps no lease.
        return max(max(ends) - now, OPEN_SECONDS_MIN) if ends else 0.0

    def report(self, step: OpenStep, op: StepOp | StepErrorOp) -> None:
        """Its body has ended."""
        step.state = StepState.REPORTED
        step.job = None
        self._outbox.add_result(op)

    # What the engine tells.

    def take_answer(self, answer: EntryAnswer, ops: Iterable[Op]) -> None:
        """An `ok` to these ops."""
        self.take_resolved(answer.resolved)
        if self._fetched is not None:
            self._fetched.note_stored(ops, answer.resolved)
        for retry in answer.retries:
            self._retries[retry.id] = retry
            step = self.open.get(retry.id)
            if step is not None and step.state is StepState.REPORTED:
                self._leave_state(step)
                self._back_off(step, retry)
        for step_id in answer.abandoned:
            step = self.open.get(step_id)
            if step is not None and step.state is not StepState.RESOLVED:
                self._leave_state(step)
                step.state = StepState.ABANDONED
        for op in ops:
            if isinstance(op, StepOp | StepErrorOp):
                step = self.open.get(op.id)
                if op.id in self._outbox.unacknowledged or (step is not None and step.state is StepState.REPORTED):
                    logger.warning("run %s: the engine did not say what became of step %r", self._run_id, op.id)
                    self.lacks_news = True

    def take_resolved(self, entries: Iterable[MemoEntry]) -> None:
        """New entries of the memo."""
        for entry in entries:
            if entry.id in self._outbox.unacknowledged:
                self._outbox.unacknowledged.remove(entry.id)
                self.memo.note_known(entry.position)
                self.memo.note_delivered(entry.position)
                continue
            self.memo.add(entry)
            self.engine_waits.pop(entry.id, None)
            step = self.open.get(entry.id)
            if step is not None and step.state is not StepState.RESOLVED:
                self.resolve(step, entry)

    def resolve(self, step: OpenStep, entry: MemoEntry) -> None:
        """The step has its memo entry."""
        if step.state is StepState.RUNNING and step.job is not None:
            step.job.cancel()
        self._leave_state(step)
        self.planned.pop(step.id, None)
        self.backing_off.pop(step.id, None)
        if entry.abandoned:
            step.state = StepState.ABANDONED
        elif entry.data is UNSET and entry.error is UNSET and step.result is None and not self._can_fetch(entry):
            logger.warning("run %s: the engine told of step %r without its result", self._run_id, step.id)
            step.state = StepState.WAITING
            self.waiting_count += 1
            self.lacks_news = True
        else:
            step.state = StepState.RESOLVED
            self.memo.ask(step.id)
            if self._fetched is not None and step.result is None:
                self._fetched.want(entry)

    def close(self, step: OpenStep) -> None:
        """It is delivered or given up."""
        self._leave_state(step)
        del self.open[step.id]
        self.ids.close(step.given_id)

    def _can_fetch(self, entry: MemoEntry) -> bool:
        return self._fetched is not None and entry.ref is not UNSET

    def _back_off(self, step: OpenStep, retry: Retry) -> None:
        step.attempt = retry.attempt
        step.due_at = time.monotonic() + retry.in_seconds
        if retry.in_seconds <= 0:
            step.state = StepState.PLANNED
            self.planned[step.id] = step
        else:
            step.state = StepState.BACKING_OFF
            self.backing_off[step.id] = step

    def _leave_state(self, step: OpenStep) -> None:
        if step.state is StepState.RUNNING or step.state is StepState.REPORTED:
            self.busy_count -= 1
        elif step.state is StepState.WAITING:
            self.waiting_count -= 1
