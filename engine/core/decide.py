"""What an outcome means for its run: pure and total, tested as a table.

It owns the rules of attempts, retries, abandonment and of the next state. It never looks at a clock: delays are in seconds, and the
random number for jitter is an argument.
"""

from __future__ import annotations

import math
from typing import assert_never

import msgspec
from msgspec import Raw

from engine.core.backoff import backoff_seconds
from engine.core.ids import sent_event_id
from engine.core.outcome import CallDied, HandedBack, Interrupted, Outcome, Reported, Undelivered
from engine.core.run import (
    INTERRUPTIONS_MAX,
    MEMO_BYTES_MAX,
    MISMATCH_DELAY_SECONDS_MAX,
    MISMATCH_SECONDS_MAX,
    UNDELIVERED_MAX,
    LiveRun,
    PendingRetry,
    Recorded,
    StepKind,
)
from engine.core.transition import (
    Counters,
    Delayed,
    Ended,
    FailedAttempt,
    LaneHold,
    NewMemo,
    NewWait,
    Next,
    Parked,
    Ready,
    Refused,
    Stay,
    Transition,
    Waiting,
)
from protocol.limits import MEMO_ENTRIES_MAX, RETRY_AFTER_SECONDS_MAX, RETRY_AFTER_SECONDS_MIN
from protocol.manifest import FunctionConfig
from protocol.messages import decode_error
from protocol.ops import (
    Abandon,
    Complete,
    Fail,
    Op,
    SendEvents,
    Sleep,
    Step,
    StepError,
    UnknownFunction,
    WaitForEvent,
    Yield,
)


def decide(run: LiveRun, config: FunctionConfig, recorded: Recorded, outcome: Outcome, *, jitter: float) -> Transition | Refused:
    """The transition of `run` by `outcome`, or why it is refused. `jitter` is a random number in [0, 1)."""
    match outcome:
        case Reported():
            return _Report(run, config, recorded, outcome, jitter).decide()
        case CallDied(code, message):
            error = _error_text(code, message)
            return _function_failed(run, config, error, retriable=True, retry_after=None, jitter=jitter, outcome="call_died")
        case Undelivered():
            return _undelivered(run, outcome)
        case Interrupted(cause):
            interruptions = run.interruptions + 1
            held = interruptions > INTERRUPTIONS_MAX
            # The first is retried at once: most interruptions are a deploy of the engine, not the run's doing.
            pause_seconds = 0.0 if interruptions == 1 else min(0.25 * 2 ** (interruptions - 2), 10.0)
            return Transition(
                next=Parked("quarantine") if held else Delayed(pause_seconds) if pause_seconds else Ready(),
                counters=Counters(run.attempt, interruptions, run.undelivered, run.mismatches),
                invocation_outcome="interrupted",
                invocation_detail=cause,
            )
        case HandedBack():
            return Transition(next=Ready(), counters=_counters(run), invocation_outcome="handed_back")
        case _:
            assert_never(outcome)


class _Report:
    """Works through the ops of one report, in order, on a copy of what is open in the run."""

    def __init__(self, run: LiveRun, config: FunctionConfig, recorded: Recorded, report: Reported, jitter: float) -> None:
        self.run, self.config, self.recorded, self.report, self.jitter = run, config, recorded, report, jitter
        self.memo: list[NewMemo] = []
        self.new_ids: dict[str, StepKind] = {}
        self.waits: list[NewWait] = []
        self.sends: list[SendEvents] = []
        self.open_waits: dict[str, StepKind] = dict(recorded.waits)
        self.dropped_waits: list[str] = []
        self.open_retries: dict[str, PendingRetry] = dict(recorded.retries)
        self.retries: dict[str, PendingRetry] = {}
        self.dropped_retries: list[str] = []
        self.failed_attempts: list[FailedAttempt] = []
        self.answered_retries: list[tuple[str, int, float]] = []
        self.abandoned: list[str] = []
        self.has_unseen = run.position > report.known
        self.end: Complete | Fail | None = None
        self.wants_turn = False

    def decide(self) -> Transition | Refused:
        # Waits before sends: an event that this very message sends may be what its wait is for.
        ordered = sorted(self.report.ops, key=lambda op: isinstance(op, SendEvents))
        for op in ordered:
            if (refusal := self._apply(op)) is not None:
                return refusal
        return self._size_refusal() or self._transition()

    def _apply(self, op: Op) -> Refused | None:
        match op:
            case Step():
                return self._step(op)
            case StepError():
                return self._step_error(op)
            case Sleep() | WaitForEvent():
                return self._wait(op)
            case SendEvents():
                if (refusal := self._place(op.id, "send_events")) is not None or self._is_settled(op.id):
                    return refusal
                ids = [
                    event.id if isinstance(event.id, str) else sent_event_id(self.run.run_id, op.id, i)
                    for i, event in enumerate(op.events)
                ]
                self.sends.append(op)
                self._remember(NewMemo(op.id, "send_events", data=msgspec.json.encode({"ids": ids}).decode()))
                self.has_unseen = True
            case Abandon(ids):
                for step_id in ids:
                    self._abandon(step_id)
            case Complete() | Fail():
                if self.end is not None:
                    return Refused("two_ends", "The message ends the run twice.", "Send one of complete and fail.")
                self.end = op
            case Yield():
                self.wants_turn = True
            case UnknownFunction():
                return Refused(
                    "unknown_function_misplaced",
                    "`unknown_function` came in a checkpoint, or with other ops.",
                    "It may only be the single op of an `ended` line in a reply.",
                )
            case _:
                assert_never(op)
        return None

    def _step(self, op: Step) -> Refused | None:
        if (refusal := self._place(op.id, "step")) is not None or self._is_settled(op.id):
            return refusal
        if not isinstance(op.data, Raw):
            return Refused(
                "unknown_ref",
                f"Step {op.id!r} refers to a value that this run does not have.",
                "Store the value for this run (POST /v1/values) and send the step with its reference; a day later it is gone.",
            )
        self._remember(
            NewMemo(
                op.id,
                "step",
                data=bytes(op.data).decode(),
                attempt=op.attempt,
                seen=op.seen,
                started_at=op.started_at,
                duration_seconds=op.duration_seconds,
            )
        )
        self._drop_retry(op.id)
        return None

    def _step_error(self, op: StepError) -> Refused | None:
        if (refusal := self._place(op.id, "step")) is not None or self._is_settled(op.id):
            return refusal
        known_retry = self.open_retries.get(op.id)
        if (op.id, op.attempt) in self.recorded.failed_attempts:
            # The same message once more: answer what was answered.
            if known_retry is not None:
                self.answered_retries.append((op.id, known_retry.attempt, known_retry.in_seconds))
            return None
        error = bytes(op.error).decode()
        attempt = known_retry.attempt if known_retry is not None else 1
        self.failed_attempts.append(FailedAttempt(op.id, attempt, error, op.started_at, op.duration_seconds))
        retries = op.retries if op.retries is not None else self.config.retries
        if op.retriable and attempt <= retries:
            policy = op.backoff or self.config.backoff
            delay = _retry_delay(op.retry_after_seconds, backoff_seconds(policy, attempt, self.jitter))
            retry = PendingRetry(attempt + 1, delay)
            self.retries[op.id] = self.open_retries[op.id] = retry
            self.answered_retries.append((op.id, retry.attempt, retry.in_seconds))
            return None
        self._remember(
            NewMemo(
                op.id,
                "step",
                error=error,
                attempt=attempt,
                seen=op.seen,
                started_at=op.started_at,
                duration_seconds=op.duration_seconds,
            )
        )
        self._drop_retry(op.id)
        self.has_unseen = True
        return None

    def _wait(self, op: Sleep | WaitForEvent) -> Refused | None:
        kind: StepKind = "sleep" if isinstance(op, Sleep) else "wait_for_event"
        if (refusal := self._place(op.id, kind)) is not None or self._is_settled(op.id):
            return refusal
        if op.id in self.open_waits:
            return None
        if isinstance(op, Sleep):
            new_wait = NewWait(op.id, kind, seconds=op.seconds, until=op.until)
        else:
            earlier = self.recorded.earlier_events.get(op.id)
            if earlier is not None:
                self._remember(NewMemo(op.id, kind, data=earlier.payload, event_id=earlier.event_id))
                self.has_unseen = True
                return None
            new_wait = NewWait(
                op.id,
                kind,
                seconds=op.timeout_seconds,
                event_name=op.event,
                match=msgspec.json.encode(op.match).decode() if op.match else None,
                condition=op.if_,
                has_lookback=op.lookback,
            )
        self.waits.append(new_wait)
        self.open_waits[op.id] = kind
        return None

    def _abandon(self, step_id: str) -> None:
        if self._is_settled(step_id):
            return
        kind = self.open_waits.pop(step_id, "step")
        if step_id in self.recorded.waits:
            self.dropped_waits.append(step_id)
        self.waits = [wait for wait in self.waits if wait.step_id != step_id]
        self._drop_retry(step_id)
        self._remember(NewMemo(step_id, kind, is_abandoned=True))

    def _place(self, step_id: str, kind: StepKind) -> Refused | None:
        """Refuse an id that already belongs to a step of another kind."""
        recorded = self.recorded.steps.get(step_id)
        other = recorded.kind if recorded else self.new_ids.get(step_id) or self.open_waits.get(step_id)
        if other is None and step_id in self.open_retries:
            other = "step"
        if recorded is not None and recorded.is_abandoned:
            if step_id not in self.abandoned:
                self.abandoned.append(step_id)
            return None
        if other is not None and other != kind:
            return Refused(
                "code_mismatch",
                f"Step {step_id!r} is recorded as {other}, and the code now runs it as {kind}.",
                "Give the changed step a new id, or wait until all instances run the same code.",
            )
        return None

    def _is_settled(self, step_id: str) -> bool:
        """Whether the step has its memo entry: what comes for it now is a repetition, or late."""
        return step_id in self.recorded.steps or step_id in self.new_ids

    def _remember(self, memo: NewMemo) -> None:
        self.memo.append(memo)
        self.new_ids[memo.step_id] = memo.kind

    def _drop_retry(self, step_id: str) -> None:
        self.retries.pop(step_id, None)
        if self.open_retries.pop(step_id, None) is not None and step_id in self.recorded.retries:
            self.dropped_retries.append(step_id)

    def _size_refusal(self) -> Refused | None:
        if not self.memo:
            # Events may have filled the memo beyond its limits. Then nothing can be added, but the run must be able to end.
            return None
        if self.run.position + len(self.memo) > MEMO_ENTRIES_MAX:
            return Refused(
                "too_many_steps",
                f"The run would have more than {MEMO_ENTRIES_MAX:,} steps.",
                "Split the work over several runs: send an event and go on in another function.",
            )
        added_bytes = memo_bytes(self.memo)
        if self.run.memo_bytes + added_bytes > MEMO_BYTES_MAX:
            return Refused(
                "run_state_too_large",
                f"The results of the run would take {self.run.memo_bytes + added_bytes:,} bytes; the limit is {MEMO_BYTES_MAX:,} (64 MiB).",
                "Store large values elsewhere and return references to them.",
            )
        return None

    def _transition(self) -> Transition:
        counters = _counters(self.run)
        # Progress of the app sets the counts back: they are of failures in a row.
        if any(not memo.is_abandoned for memo in self.memo) or self.failed_attempts:
            counters = Counters(1, 0, 0)
        next_state: Next = Stay()
        outcome: str | None = None
        detail: str | None = None
        if isinstance(self.end, Complete):
            next_state, outcome = Ended("completed", output=bytes(self.end.output).decode()), "completed"
        elif isinstance(self.end, Fail):
            error = bytes(self.end.error).decode()
            failed = _function_failed(
                _with(self.run, counters),
                self.config,
                error,
                retriable=self.end.retriable,
                retry_after=self.end.retry_after_seconds,
                jitter=self.jitter,
                outcome="failed",
            )
            next_state, counters = failed.next, failed.counters
            outcome, detail = failed.invocation_outcome, failed.invocation_detail
        elif self.report.ends:
            outcome = "parked"
            if self.wants_turn or self.has_unseen:
                next_state = Ready()
            elif self.open_retries:
                delay = min(retry.in_seconds for retry in self.open_retries.values())
                next_state = Delayed(delay) if delay > 0 else Ready()
            elif self.open_waits:
                next_state = Waiting()
            elif any(not memo.is_abandoned for memo in self.memo):
                # Its own results are all that is new; with nothing else to wait for the handler must get them.
                next_state = Ready()
            else:
                failed = _function_failed(
                    _with(self.run, counters),
                    self.config,
                    _error_text(
                        "nothing_planned",
                        "The app ended the invocation without a result, an error, an open step or a wait.",
                    ),
                    retriable=True,
                    retry_after=None,
                    jitter=self.jitter,
                    outcome="nothing_planned",
                )
                next_state, counters = failed.next, failed.counters
                outcome, detail = failed.invocation_outcome, failed.invocation_detail
        return Transition(
            next=next_state,
            counters=counters,
            memo=tuple(self.memo),
            waits=tuple(self.waits),
            dropped_waits=tuple(self.dropped_waits),
            failed_attempts=tuple(self.failed_attempts),
            retries=tuple((step_id, retry.attempt, retry.in_seconds) for step_id, retry in self.retries.items()),
            dropped_retries=tuple(self.dropped_retries),
            sends=tuple(self.sends),
            taken_events=tuple(memo.event_id for memo in self.memo if memo.event_id is not None),
            answered_abandoned=tuple(self.abandoned),
            answered_retries=tuple(self.answered_retries),
            has_open=bool(self.open_waits or self.open_retries),
            invocation_outcome=outcome,
            invocation_detail=detail,
        )


def memo_bytes(memo: list[NewMemo] | tuple[NewMemo, ...]) -> int:
    """The bytes that these entries add to the state of their run."""
    return sum(len(entry.data or "") + len(entry.error or "") + len(entry.step_id) for entry in memo)


def _function_failed(
    run: LiveRun,
    config: FunctionConfig,
    error: str,
    *,
    retriable: bool,
    retry_after: float | None,
    jitter: float,
    outcome: str,
) -> Transition:
    """The function itself failed, outside its steps: the next attempt, or the end."""
    if retriable and _is_mismatch(error):
        return _mismatched(run, error, outcome)
    if retriable and run.attempt <= config.retries:
        delay = _retry_delay(retry_after, backoff_seconds(config.backoff, run.attempt, jitter))
        counters = Counters(run.attempt + 1, run.interruptions, 0, run.mismatches)
        next_state: Next = Delayed(delay) if delay > 0 else Ready()
    else:
        counters, next_state = _counters(run), Ended("failed", error=error)
    return Transition(next=next_state, counters=counters, invocation_outcome=outcome, invocation_detail=error)


def _mismatched(run: LiveRun, error: str, outcome: str) -> Transition:
    """Old and new code run side by side while a deploy rolls: no retry is spent, and after an hour it was no deploy."""
    mismatches = run.mismatches + 1
    delays = [min(2.0**power, MISMATCH_DELAY_SECONDS_MAX) for power in range(min(mismatches, 1_000))]
    next_state: Next = Delayed(delays[-1])
    if sum(delays) > MISMATCH_SECONDS_MAX:
        next_state = Ended("failed", error=error)
    counters = Counters(run.attempt, run.interruptions, 0, mismatches)
    return Transition(next=next_state, counters=counters, invocation_outcome=outcome, invocation_detail=error)


def _is_mismatch(error: str) -> bool:
    return decode_error(Raw(error.encode())).code == "code_mismatch"


def _undelivered(run: LiveRun, outcome: Undelivered) -> Transition:
    """The app did not get it: the lane waits, the run loses nothing. A run that alone can not be delivered is held."""
    undelivered = run.undelivered + 1 if outcome.others_succeed else 0
    hold = LaneHold(
        outcome.cause, outcome.detail, whole_app=outcome.cause == "app_unreachable", seconds=outcome.retry_after_seconds
    )
    return Transition(
        next=Parked("quarantine") if undelivered >= UNDELIVERED_MAX else Ready(),
        counters=Counters(run.attempt, run.interruptions, undelivered, run.mismatches),
        invocation_outcome="undelivered",
        invocation_detail=outcome.detail,
        lane_hold=hold,
    )


def _retry_delay(asked_seconds: float | None, policy_seconds: float) -> float:
    if asked_seconds is None or not math.isfinite(asked_seconds):
        return policy_seconds
    return min(max(asked_seconds, RETRY_AFTER_SECONDS_MIN), RETRY_AFTER_SECONDS_MAX)


def _counters(run: LiveRun) -> Counters:
    return Counters(run.attempt, run.interruptions, run.undelivered, run.mismatches)


def _with(run: LiveRun, counters: Counters) -> LiveRun:
    return LiveRun(
        run.run_id,
        run.workspace_id,
        run.function_id,
        run.state,
        run.generation,
        run.position,
        run.memo_bytes,
        counters.attempt,
        counters.interruptions,
        counters.undelivered,
        counters.mismatches,
    )


def _error_text(code: str, message: str) -> str:
    return msgspec.json.encode({"name": "DurableError", "message": message, "code": code}).decode()
