"""One run of an engine that lives in memory, for tests: takes ops, remembers results, keeps a clock that only moves
when told to.

Owns the rules of protocol sections 4.3 and 5 for a single run. Runs no handler and waits for nothing; `testing`
drives it. Pauses between tries have no jitter here, so that tests can name their moments.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal, TypeAlias, assert_never

from msgspec import UNSET, Raw

from durable.errors import DurableError
from durable.json_text import decode, encode_result
from durable.wire import (
    AbandonOp,
    Backoff,
    CompleteOp,
    EntryAnswer,
    EventIn,
    FailOp,
    Invocation,
    Kind,
    MemoEntry,
    Op,
    OpenWait,
    Retry,
    SendEventsOp,
    SleepOp,
    StepErrorOp,
    StepOp,
    UnknownFunctionOp,
    WaitForEventOp,
    WireEvent,
    WireRefusal,
    YieldOp,
)
from durable.wire_codec import encode

LEASE_SECONDS: Final = 30.0
State: TypeAlias = Literal["ready", "waiting", "completed", "failed", "cancelled"]
EvaluateIf: TypeAlias = Callable[[str, dict[str, Any]], bool]


class ExpressionNotEvaluated(DurableError):
    """An event met a wait with `if_`, a CEL expression, which this in-memory engine does not evaluate. Give
    `evaluate_if=` to durable.testing.start(), or use `match=`.
    """

    code: str = "expression_not_evaluated"


@dataclass(slots=True)
class EngineWait:
    """A sleep or wait that is open. `due_at` is its end by the clock of the test."""

    id: str
    kind: Kind
    due_at: float
    event: str | None = None
    match: dict[str, Any] | None = None
    if_: str | None = None


@dataclass(slots=True)
class EngineRetry:
    id: str
    attempt: int
    due_at: float


@dataclass(slots=True)
class EngineRun:
    """The state of one run. `now` is in seconds since 1970 and moves only by `testing`."""

    run_id: str
    function_id: str
    event: WireEvent
    now: float
    retries: int
    backoff: Backoff
    evaluate_if: EvaluateIf | None = None
    state: State = "ready"
    due_at: float = 0.0
    is_backing_off: bool = False
    attempt: int = 1
    generation: int = 0
    position: int = 0
    memo: dict[str, MemoEntry] = field(default_factory=dict)
    open_waits: dict[str, EngineWait] = field(default_factory=dict)
    waiting_retries: dict[str, EngineRetry] = field(default_factory=dict)
    abandoned: dict[str, Kind] = field(default_factory=dict)
    events: list[WireEvent] = field(default_factory=list)
    taken: set[str] = field(default_factory=set)
    sent: list[dict[str, Any]] = field(default_factory=list)
    output: Raw | None = None
    error: Raw | None = None

    @property
    def has_ended(self) -> bool:
        return self.state in ("completed", "failed", "cancelled")

    # What the app is told.

    def next_invocation(self) -> Invocation:
        """Lease the run: a new generation, with all that is remembered."""
        self.generation += 1
        return Invocation(
            run_id=self.run_id,
            generation=self.generation,
            attempt=self.attempt,
            function=self.function_id,
            event=self.event,
            steps=sorted(self.memo.values(), key=lambda entry: entry.position),
            retries=self._retries_left(),
            waiting=[OpenWait(wait.id, wait.kind) for wait in self.open_waits.values()],
            lease_seconds=LEASE_SECONDS,
        )

    def checkpoint(self, generation: int, known: int, ops: Sequence[Op]) -> EntryAnswer:
        """Apply the ops of a running invocation, all or none, and say what is new beyond `known`."""
        if self.state == "cancelled":
            return EntryAnswer(self.run_id, generation, "cancelled")
        if self.has_ended or generation != self.generation:
            return EntryAnswer(self.run_id, generation, "stale")
        refusal = self._refusal(ops)
        if refusal is not None:
            return EntryAnswer(self.run_id, generation, "refused", error=refusal)
        late = [op.id for op in ops if isinstance(op, StepOp | StepErrorOp) and op.id in self.abandoned]
        self._apply(ops)
        own = {op.id for op in ops if isinstance(op, StepOp)}
        news = sorted((entry for entry in self.memo.values() if entry.position > known), key=lambda entry: entry.position)
        return EntryAnswer(
            self.run_id,
            generation,
            "ok",
            lease_seconds=LEASE_SECONDS,
            resolved=[MemoEntry(entry.id, entry.kind, entry.position) if entry.id in own else entry for entry in news],
            retries=self._retries_left(),
            abandoned=late,
        )

    def end(self, generation: int, known: int, ops: Sequence[Op]) -> str | None:
        """Apply the end of an invocation; the code of the app's fault when it left nothing planned."""
        if self.has_ended or generation != self.generation:
            return None
        refusal = self._refusal(ops)
        if refusal is not None:
            self._fail(_error(refusal.code, refusal.message), retriable=refusal.code == "code_mismatch")
            return refusal.code
        has_unseen = self.position > known
        before = self.position
        self._apply(ops)
        own = {op.id for op in ops if isinstance(op, StepOp)}
        # The app has the results that it sends itself: with a wait beside them they are no news.
        new = {entry.id for entry in self.memo.values() if entry.position > before}
        has_unseen = has_unseen or not new <= own or (bool(new) and not self.open_waits and not self.waiting_retries)
        match ops[-1] if ops else None:
            case CompleteOp(output=output):
                self._close("completed")
                self.output = output
            case FailOp() as op:
                self._fail(op.error, retriable=op.retriable, retry_after_seconds=op.retry_after_seconds)
            case YieldOp():
                self._make_ready(self.now)
            case UnknownFunctionOp():
                self._make_ready(self.now + 60)
            case _:
                return self._park(has_unseen)
        return None

    # Time and events.

    def next_due_at(self) -> float | None:
        """The next instant at which something happens by itself."""
        if self.has_ended:
            return None
        instants = [wait.due_at for wait in self.open_waits.values()]
        if self.state == "ready":
            instants.append(self.due_at)
        return min(instants, default=None)

    def resolve_due_waits(self) -> None:
        """Commit the sleeps and timeouts that are due, the earliest first."""
        for wait in sorted(self.open_waits.values(), key=lambda wait: wait.due_at):
            if wait.due_at <= self.now:
                del self.open_waits[wait.id]
                self._commit(wait.id, wait.kind, data=Raw(b"null"))
                self._bring_news()

    def take_event(self, event: WireEvent) -> None:
        """An event has come: the first wait that it fits gets it; else it is kept for a later one."""
        self.events.append(event)
        for wait in self.open_waits.values():
            if self._fits(wait, event):
                self._give(wait, event)
                self._bring_news()
                return

    def cancel(self) -> None:
        if not self.has_ended:
            self._close("cancelled")

    # Ops.

    def _refusal(self, ops: Sequence[Op]) -> WireRefusal | None:
        for op in ops:
            kind = _kind(op)
            step_id = getattr(op, "id", None)
            if kind is None or step_id is None:
                continue
            entry, wait = self.memo.get(step_id), self.open_waits.get(step_id)
            known_kind = entry.kind if entry is not None else wait.kind if wait is not None else kind
            if known_kind != kind:
                return WireRefusal("code_mismatch", f"The step {step_id!r} is remembered as a {known_kind}, not a {kind}.")
        return None

    def _apply(self, ops: Sequence[Op]) -> None:
        # Waits before sends: a wait of the same message can take an event that is sent in it.
        for op in ops:
            if not isinstance(op, SendEventsOp):
                self._apply_one(op)
        for op in ops:
            if isinstance(op, SendEventsOp) and op.id not in self.memo:
                self._send(op)

    def _apply_one(self, op: Op) -> None:
        match op:
            case StepOp():
                if op.id not in self.memo and op.id not in self.abandoned:
                    assert isinstance(op.data, Raw), "nothing travels by reference here"
                    self.waiting_retries.pop(op.id, None)
                    self._commit(op.id, "step", data=op.data)
            case StepErrorOp():
                if op.id not in self.memo and op.id not in self.abandoned:
                    self._step_failed(op)
            case SleepOp():
                until = op.until.timestamp() if op.until is not None else self.now + (op.seconds or 0.0)
                self._open_wait(EngineWait(op.id, "sleep", until))
            case WaitForEventOp():
                wait = EngineWait(op.id, "wait_for_event", self.now + op.timeout_seconds, op.event, op.match, op.if_)
                self._open_wait(wait)
            case AbandonOp():
                for step_id in op.ids:
                    wait_given_up = self.open_waits.pop(step_id, None)
                    self.waiting_retries.pop(step_id, None)
                    if step_id not in self.memo:
                        self.abandoned[step_id] = wait_given_up.kind if wait_given_up is not None else "step"
            case SendEventsOp() | CompleteOp() | FailOp() | YieldOp() | UnknownFunctionOp():
                pass
            case _:
                assert_never(op)

    def _step_failed(self, op: StepErrorOp) -> None:
        retries = self.retries if op.retries is None else op.retries
        if not op.retriable or op.attempt > retries:
            self.waiting_retries.pop(op.id, None)
            self._commit(op.id, "step", error=op.error)
            return
        pause_seconds = op.retry_after_seconds
        if pause_seconds is None:
            pause_seconds = _pause_seconds(op.backoff or self.backoff, op.attempt)
        self.waiting_retries[op.id] = EngineRetry(op.id, op.attempt + 1, self.now + pause_seconds)

    def _open_wait(self, wait: EngineWait) -> None:
        if wait.id in self.memo or wait.id in self.open_waits or wait.id in self.abandoned:
            return
        self.open_waits[wait.id] = wait
        for event in self.events:
            if event.id not in self.taken and self._fits(wait, event):
                self._give(wait, event)
                return

    def _fits(self, wait: EngineWait, event: WireEvent) -> bool:
        if wait.event != event.name:
            return False
        data = decode(bytes(event.data))
        if any(not _is_same(_at_path(data, path), value) for path, value in (wait.match or {}).items()):
            return False
        if wait.if_ is None:
            return True
        if self.evaluate_if is None:
            raise ExpressionNotEvaluated(
                f"The wait {wait.id!r} has if_={wait.if_!r}, which durable.testing does not evaluate. Give "
                "evaluate_if= to durable.testing.start(), or use match=."
            )
        return self.evaluate_if(wait.if_, {"id": event.id, "name": event.name, "data": data})

    def _give(self, wait: EngineWait, event: WireEvent) -> None:
        self.taken.add(event.id)
        del self.open_waits[wait.id]
        self._commit(wait.id, wait.kind, data=Raw(encode(event)))

    def _send(self, op: SendEventsOp) -> None:
        events = [self.new_event(event) for event in op.events]
        self._commit(op.id, "send_events", data=Raw(encode_result({"ids": [event.id for event in events]}, where="ids")))
        for event in events:
            self.sent.append({"id": event.id, "name": event.name, "data": decode(bytes(event.data))})
            self.take_event(event)

    def new_event(self, event: EventIn) -> WireEvent:
        """The event with an id and the clock's instant."""
        event_id = event.id if isinstance(event.id, str) else f"evt-{len(self.events) + 1}"
        return WireEvent(event_id, event.name, event.data, datetime.fromtimestamp(self.now, UTC))

    def _commit(self, step_id: str, kind: Kind, *, data: Raw | None = None, error: Raw | None = None) -> None:
        self.position += 1
        self.attempt = 1
        # Raws of ops may be views of a message; what is remembered is a copy.
        self.memo[step_id] = MemoEntry(
            step_id,
            kind,
            self.position,
            data=UNSET if data is None else Raw(bytes(data)),
            error=UNSET if error is None else Raw(bytes(error)),
        )

    # States.

    def _park(self, has_unseen: bool) -> str | None:
        if has_unseen:
            self._make_ready(self.now)
        elif self.waiting_retries:
            self._make_ready(min(retry.due_at for retry in self.waiting_retries.values()))
        elif self.open_waits:
            self.state = "waiting"
        else:
            self._fail(_error("nothing_planned", "The invocation ended without an end, a wait or a retry."), retriable=True)
            return "nothing_planned"
        return None

    def _fail(self, error: Raw, *, retriable: bool, retry_after_seconds: float | None = None) -> None:
        if not retriable or self.attempt > self.retries:
            self._close("failed")
            self.error = Raw(bytes(error))
            return
        pause_seconds = retry_after_seconds
        if pause_seconds is None:
            pause_seconds = _pause_seconds(self.backoff, self.attempt)
        self.attempt += 1
        self._make_ready(self.now + pause_seconds)
        self.is_backing_off = True
        self.error = Raw(bytes(error))

    def _make_ready(self, due_at: float) -> None:
        if self.has_ended:
            return
        self.state = "ready"
        self.due_at = due_at
        self.is_backing_off = False

    def _bring_news(self) -> None:
        # A result cuts the wait for a step's retry short, but not the pause that the function itself earned.
        if not self.is_backing_off:
            self._make_ready(self.now)

    def _close(self, state: State) -> None:
        self.state = state
        self.open_waits.clear()
        self.waiting_retries.clear()
        self.error = None

    def _retries_left(self) -> list[Retry]:
        return [Retry(retry.id, retry.attempt, max(retry.due_at - self.now, 0)) for retry in self.waiting_retries.values()]


def _kind(op: Op) -> Kind | None:
    match op:
        case StepOp() | StepErrorOp():
            return "step"
        case SleepOp():
            return "sleep"
        case WaitForEventOp():
            return "wait_for_event"
        case SendEventsOp():
            return "send_events"
        case _:
            return None


def _pause_seconds(backoff: Backoff, failures: int) -> float:
    # A high power overflows; the cap is reached long before.
    return min(backoff.initial_seconds * backoff.factor ** min(failures - 1, 64), backoff.max_seconds)


def _at_path(data: Any, path: str) -> Any:
    for name in path.split("."):
        data = data.get(name) if isinstance(data, dict) else None
    return data


def _is_same(found: Any, wanted: Any) -> bool:
    return found == wanted and isinstance(found, bool) == isinstance(wanted, bool)


def _error(code: str, message: str) -> Raw:
    return Raw(encode_result({"name": code, "message": message, "code": code}, where="an error"))
