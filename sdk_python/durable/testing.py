"""Runs durable functions in tests: an engine in memory, a clock that you move, no HTTP and no waiting.

    async def test_onboarding_reminds_after_two_days():
        run = await durable.testing.start(onboarding, {"id": 7})
        assert run.steps == {"load-user": {"id": 7}} and run.waiting == ["cooldown"]
        await run.advance("2d")
        assert run.status == "completed" and run.output == "reminded"

The handler is run by the same executor as in production, replays included: every invocation starts it afresh.
"""

import asyncio
import time
import uuid
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import Any, Final, Literal, TypeAlias, TypeVar

from msgspec import UNSET, Raw

from durable.durations import Duration, parse_duration
from durable.errors import StepUsageError
from durable.function import Function
from durable.json_text import decode, encode_result
from durable.run_invocation import run_invocation
from durable.runtime import current_runtime
from durable.sender import OnAnswer
from durable.testing_engine import EngineRun, EvaluateIf, ExpressionNotEvaluated
from durable.wire import CheckpointEntry, ErrorWords, EventIn, WireEvent
from durable.wire_codec import decode_error

T = TypeVar("T")
Status: TypeAlias = Literal["waiting", "completed", "failed", "cancelled"]

INVOCATIONS_MAX: Final = 10_000
"""A run that is invoked this often without an end or a wait turns in a circle."""

__all__ = ["ExpressionNotEvaluated", "Run", "SyncRun", "start", "start_sync"]


async def start(
    function: Function,
    data: Any = None,
    *,
    event: str = "durable.start",
    now: datetime | None = None,
    evaluate_if: EvaluateIf | None = None,
) -> "Run":
    """Start a run of the function with this event data, and go on until it waits or has ended.

    `event` is the name of the event, `now` the first instant of the run's clock (default: the time of the call).
    `evaluate_if(expression, event)` decides on `if_` of waits. Works on asyncio and on Trio.
    """
    run = Run(_new_run(function, data, event, now, evaluate_if), function)
    await run.settle()
    return run


def start_sync(
    function: Function,
    data: Any = None,
    *,
    event: str = "durable.start",
    now: datetime | None = None,
    evaluate_if: EvaluateIf | None = None,
) -> "SyncRun":
    """`start` for tests without a loop; async functions then run on asyncio.

    def test_it():
        run = durable.testing.start_sync(onboarding, {"id": 7})
        run.advance("2d")
        assert run.status == "completed"
    """
    return SyncRun(_await(start(function, data, event=event, now=now, evaluate_if=evaluate_if)))


class _RunView:
    """What a test can see of a run."""

    def __init__(self, engine: EngineRun, function: Function) -> None:
        self.engine = engine
        self.function = function
        # Counts the hand-overs of the run to the handler: how often it began at its top.
        self.invocations = 0

    @property
    def run_id(self) -> str:
        return self.engine.run_id

    @property
    def status(self) -> Status:
        """`waiting` (for a time, an event or a retry), `completed`, `failed` or `cancelled`."""
        return "waiting" if self.engine.state == "ready" else self.engine.state

    @property
    def steps(self) -> dict[str, Any]:
        """The results so far by step id, in the order of their commits. A step that failed for good is not in it."""
        return {entry.id: decode(bytes(entry.data)) for entry in self.engine.memo.values() if entry.data is not UNSET}

    @property
    def step_errors(self) -> dict[str, ErrorWords]:
        """The errors of the steps that failed for good."""
        return {entry.id: decode_error(bytes(entry.error)) for entry in self.engine.memo.values() if entry.error is not UNSET}

    @property
    def waiting(self) -> list[str]:
        """The ids of open sleeps and waits, and of steps that wait for another try."""
        return [*self.engine.open_waits, *self.engine.waiting_retries]

    @property
    def output(self) -> Any:
        """What the function returned. Raises AssertionError with the state when the run is not completed."""
        if self.engine.state != "completed" or self.engine.output is None:
            raise AssertionError(f"The run has no output: {self._described()}.")
        return decode(bytes(self.engine.output))

    @property
    def error(self) -> ErrorWords | None:
        """The error of a failed run; before its end the last error of the function, which is tried again."""
        return None if self.engine.error is None else decode_error(bytes(self.engine.error))

    @property
    def sent_events(self) -> list[dict[str, Any]]:
        """The events that the run sent: id, name and data of each."""
        return list(self.engine.sent)

    @property
    def now(self) -> datetime:
        """The instant of the run's clock."""
        return datetime.fromtimestamp(self.engine.now, UTC)

    def _described(self) -> str:
        error = self.error
        return f"it is {self.status}, waiting for {self.waiting}" + (f", error {error.name}: {error.message}" if error else "")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.function.id}: {self._described()}>"


class Run(_RunView):
    """A run in memory, for async tests."""

    async def advance(self, duration: Duration) -> None:
        """Move the clock on. All that is due until then happens, each thing at its own instant."""
        target = self.engine.now + parse_duration(duration)
        while (due_at := self.engine.next_due_at()) is not None and due_at <= target:
            self.engine.now = max(self.engine.now, due_at)
            await self.settle()
        self.engine.now = target

    async def advance_until_ended(self, *, at_most: Duration = "52w") -> None:
        """Move the clock from one due thing to the next until the run has ended or nothing is due before `at_most`."""
        target = self.engine.now + parse_duration(at_most)
        while (due_at := self.engine.next_due_at()) is not None and due_at <= target:
            self.engine.now = max(self.engine.now, due_at)
            await self.settle()

    async def send(self, name: str, data: Any = None, *, id: str | None = None) -> None:
        """Let an event come now. A wait that it fits gets it; else a later wait of this run may."""
        raw = Raw(encode_result(data, where=f"the data of event {name!r}"))
        self.engine.take_event(self.engine.new_event(EventIn(name, raw, UNSET if id is None else id)))
        await self.settle()

    def cancel(self) -> None:
        """Cancel the run, as a user does."""
        self.engine.cancel()

    async def settle(self) -> None:
        """Invoke the function as often as the run is ready at this instant. The other methods do it by themselves."""
        engine = self.engine
        for _ in range(INVOCATIONS_MAX):
            engine.resolve_due_waits()
            if engine.state != "ready" or engine.due_at > engine.now:
                return
            await self._invoke()
        raise AssertionError(f"The run was invoked {INVOCATIONS_MAX:,} times at one instant: {self._described()}.")

    async def _invoke(self) -> None:
        self.invocations += 1
        engine = self.engine
        ended = await run_invocation(
            self.function, engine.next_invocation(), self, received_at=time.monotonic(), runtime=current_runtime()
        )
        if ended is not None:
            engine.end(ended.generation, ended.known, ended.ops)

    def submit_soon(self, entry: CheckpointEntry, deadline: float, on_answer: OnAnswer) -> None:
        """The executor's way to the engine (`sender.Sender`)."""
        on_answer(self.engine.checkpoint(entry.generation, entry.known, entry.ops))


class SyncRun(_RunView):
    """A run in memory, for tests without a loop. See `Run`."""

    def __init__(self, run: Run) -> None:
        super().__init__(run.engine, run.function)
        self._run = run
        self.invocations = run.invocations

    def advance(self, duration: Duration) -> None:
        """Move the clock on. All that is due until then happens, each thing at its own instant."""
        self._go(self._run.advance(duration))

    def advance_until_ended(self, *, at_most: Duration = "52w") -> None:
        """Move the clock from one due thing to the next until the run has ended or nothing is due before `at_most`."""
        self._go(self._run.advance_until_ended(at_most=at_most))

    def send(self, name: str, data: Any = None, *, id: str | None = None) -> None:
        """Let an event come now. A wait that it fits gets it; else a later wait of this run may."""
        self._go(self._run.send(name, data, id=id))

    def cancel(self) -> None:
        """Cancel the run, as a user does."""
        self._run.cancel()

    def _go(self, going: Coroutine[Any, Any, None]) -> None:
        _await(going)
        self.invocations = self._run.invocations


def _new_run(function: Function, data: Any, event: str, now: datetime | None, evaluate_if: EvaluateIf | None) -> EngineRun:
    if not isinstance(function, Function):
        raise StepUsageError(f"durable.testing.start() takes a function made by @app.function, not {function!r:.100}.")
    started_at = datetime.now(UTC) if now is None else now.astimezone(UTC)
    raw = Raw(encode_result(data, where="the data of the event"))
    return EngineRun(
        run_id=str(uuid.uuid4()),
        function_id=function.id,
        event=WireEvent("evt-0", event, raw, started_at),
        now=started_at.timestamp(),
        retries=function.retries,
        backoff=function.backoff,
        evaluate_if=evaluate_if,
    )


def _await(going: Coroutine[Any, Any, T]) -> T:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(going)
    going.close()
    raise StepUsageError("A loop is running here: use `await durable.testing.start(…)`, whose methods are awaited.")
