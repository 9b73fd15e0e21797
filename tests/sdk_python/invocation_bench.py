"""Runs invocations for the tests of the executor: on asyncio or Trio, against the in-memory engine, with a record of
what was sent. Fails a test that leaves a task behind.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import trio
import trio.testing
from msgspec import Raw

from durable.executor import Execution
from durable.function import Function, define_function
from durable.json_text import decode, encode_result
from durable.run_invocation import run_invocation
from durable.runtime import current_runtime
from durable.testing_engine import EngineRun
from durable.triggers import Event
from durable.values import Values
from durable.wire import Backoff, CheckpointEntry, CompleteOp, Ended, EntryAnswer, Op, StepOp, WireEvent

LOOPS = ("asyncio", "trio")
RUN_ID = "01990a3c-7d1e-7c3a-9b52-6f1f0e7f9a10"
NO_JITTER = Backoff(jitter=False)


def on_loop(loop: str, main: Callable[[], Awaitable[Any]]) -> Any:
    """Run it on `asyncio` or `trio`; a task that is left on asyncio fails the test, on Trio there can be none."""
    if loop == "trio":
        return trio.run(main)

    async def checked() -> Any:
        result = await main()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, f"left behind: {left}"
        return result

    # Not asyncio.run: pytest plugins that import trio_asyncio change what it runs on.
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        return runner.run(checked())


def function_of(handler: Callable[..., Any], **options: Any) -> Function:
    return define_function(handler, triggers=Event("test"), function_id="f", **options)


def new_engine(*, retries: int = 3, data: Any = None) -> EngineRun:
    event = WireEvent("evt-0", "test", Raw(encode_result(data, where="data")), datetime(2026, 1, 31, tzinfo=UTC))
    return EngineRun(RUN_ID, "f", event, now=1_000_000.0, retries=retries, backoff=NO_JITTER)


class Wire:
    """The sender of a test: hands entries to the in-memory engine and keeps them. `before` sees each entry first and may
    answer in the engine's place.
    """

    def __init__(self, engine: EngineRun) -> None:
        self.engine = engine
        self.entries: list[CheckpointEntry] = []
        self.before: Callable[[CheckpointEntry], Awaitable[EntryAnswer | None]] | None = None
        self.in_flight = 0
        self.last_results: list[StepOp] = []
        self._tasks: list[asyncio.Task[None]] = []  # the loop holds them only weakly

    def submit_soon(self, entry: CheckpointEntry, deadline: float, on_answer: Callable[[Any], None]) -> None:
        assert self.in_flight == 0, "two checkpoints of one run at once"
        assert deadline > time.monotonic()
        self.in_flight += 1
        self.entries.append(entry)
        if is_trio():
            trio.lowlevel.spawn_system_task(self._answer, entry, on_answer)
        else:
            self._tasks.append(asyncio.create_task(self._answer(entry, on_answer)))

    async def _answer(self, entry: CheckpointEntry, on_answer: Callable[[Any], None]) -> None:
        answer: EntryAnswer | Exception | None
        try:
            answer = None if self.before is None else await self.before(entry)
            if answer is None:
                await pause()
                answer = self.engine.checkpoint(entry.generation, entry.known, entry.ops)
        except Exception as error:
            answer = error
        self.in_flight -= 1
        on_answer(answer)

    def take_last_results(self, ended: Ended) -> None:
        self.last_results = [op for op in ended.ops if isinstance(op, StepOp)]
        if self.last_results:
            self.engine.checkpoint(ended.generation, ended.known, self.last_results)

    @property
    def ops(self) -> list[Op]:
        """What was reported: by checkpoints, and results with `complete`."""
        return [*(op for entry in self.entries for op in entry.ops), *self.last_results]


async def invoke(
    function: Function,
    wire: Wire,
    *,
    lease_seconds: float | None = None,
    received_at: float | None = None,
    values: Values | None = None,
    on_started: Callable[[Execution], None] | None = None,
) -> Ended | None:
    """One invocation of the engine's run. Its end is the test's to apply; only results that travel with `complete` are
    remembered, so that the run can be replayed whole.
    """
    invocation = wire.engine.next_invocation()
    if lease_seconds is not None:
        from msgspec.structs import replace

        invocation = replace(invocation, lease_seconds=lease_seconds)
    at = time.monotonic() if received_at is None else received_at
    ended = await run_invocation(
        function, invocation, wire, received_at=at, runtime=current_runtime(), values=values, on_started=on_started
    )
    if ended is not None and ended.ops and isinstance(ended.ops[-1], CompleteOp):
        wire.take_last_results(ended)
    return ended


async def pause() -> None:
    """Let other tasks run once."""
    if is_trio():
        await trio.lowlevel.checkpoint()
    else:
        await asyncio.sleep(0)


async def sleep(seconds: float) -> None:
    if is_trio():
        await trio.sleep(seconds)
    else:
        await asyncio.sleep(seconds)


async def forever() -> None:
    if is_trio():
        await trio.sleep_forever()
    await asyncio.get_running_loop().create_future()


async def side_by_side(*branches: Callable[[], Awaitable[Any]]) -> None:
    """A nursery or task group: all branches, or the first error and the others cancelled."""
    if is_trio():
        async with trio.open_nursery() as nursery:
            for branch in branches:
                nursery.start_soon(branch)
    else:
        async with asyncio.TaskGroup() as tasks:
            for branch in branches:
                tasks.create_task(branch())  # type: ignore[arg-type]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await sleep(0.001)


async def until_blocked() -> None:
    """Wait until every other task of the loop waits for something."""
    if is_trio():
        await trio.testing.wait_all_tasks_blocked(0.005)
        return
    me, quiet_turns = asyncio.current_task(), 0
    while quiet_turns < 50:
        waiting = [task._fut_waiter for task in asyncio.all_tasks() if task is not me]  # type: ignore[attr-defined]
        quiet_turns = quiet_turns + 1 if all(future is not None and not future.done() for future in waiting) else 0
        await asyncio.sleep(0)


def is_trio() -> bool:
    return trio.lowlevel.in_trio_run()


def words(ended: Ended | None) -> list[str]:
    assert ended is not None
    return [str(op.__struct_config__.tag) for op in ended.ops]


def output(ended: Ended | None) -> Any:
    assert ended is not None, "the invocation ended without a line"
    assert set(words(ended)) <= {"step", "complete"}, [error_of(ended) if "fail" in words(ended) else words(ended)]
    return decode(bytes(ended.ops[-1].output))  # type: ignore[union-attr]


def error_of(ended: Ended | None) -> dict[str, Any]:
    assert ended is not None
    return {**decode(bytes(ended.ops[-1].error)), "retriable": ended.ops[-1].retriable}  # type: ignore[union-attr]
