"""What an execution tells the alive poll, and what it does with the answers."""

import time
from typing import Any

import pytest
from msgspec import Raw

from durable.executor import Execution
from durable.wire import AliveRunAnswer, CheckpointEntry, EntryAnswer, EventIn
from tests.sdk_python.invocation_bench import (
    LOOPS,
    Wire,
    function_of,
    invoke,
    new_engine,
    on_loop,
    output,
    pause,
    side_by_side,
    until,
)


@pytest.mark.parametrize("loop", LOOPS)
def test_alive_names_the_longest_body_and_brings_results_beside_it(loop: str) -> None:
    async def main() -> None:
        wire = Wire(new_engine())
        executions: list[Execution] = []
        got: list[str] = []

        async def handler(event: Any, step: Any) -> None:
            async def wait() -> None:
                heard = await step.wait_for_event("w", event="x", timeout="1d")
                got.append(heard.name)

            await side_by_side(wait, lambda: step.run("long", long, timeout=100))

        async def long() -> str:
            (execution,) = executions
            await until(lambda: bool(wire.engine.open_waits))
            run = execution.alive_run(wire_now())
            assert 90 < run.open_seconds <= 100 and (run.generation, run.known) == (1, 0)
            # As the alive thread of a blocked loop would see it: the body still runs, beyond its timeout.
            assert 0 < execution.alive_run(wire_now() + 1_000).open_seconds < 1
            await pause()
            wire.engine.take_event(wire.engine.new_event(event_of("x")))
            entry = wire.engine.memo["w"]
            for generation in (7, 1, 1):  # of another generation; then the news, twice
                execution.take_alive(AliveRunAnswer(run.run_id, generation, "ok", 30.0, [entry]))
            await until(lambda: got == ["x"])
            assert execution.alive_run(wire_now()).known == 1
            return "done"

        ended = await invoke(function_of(handler), wire, on_started=executions.append)
        assert output(ended) is None and got == ["x"]
        assert executions[0].alive_run(wire_now()).open_seconds == 0

    on_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_alive_may_tell_of_a_result_before_the_answer_to_its_checkpoint(loop: str) -> None:
    async def main() -> None:
        wire = Wire(new_engine())
        executions: list[Execution] = []
        seen: list[str] = []

        async def handler(event: Any, step: Any) -> list[int]:
            first = await step.run("a", lambda: 1)
            second = await step.run("b", lambda: 2)
            seen.append("b")
            return [first, second]

        async def commit_first(entry: CheckpointEntry) -> EntryAnswer:
            answer = wire.engine.checkpoint(entry.generation, entry.known, entry.ops)
            news = AliveRunAnswer(entry.run_id, entry.generation, "ok", 30.0, list(wire.engine.memo.values()))
            executions[0].take_alive(news)
            for _ in range(20):
                await pause()
            return answer

        wire.before = commit_first
        ended = await invoke(function_of(handler), wire, on_started=executions.append)
        assert output(ended) == [1, 2] and seen == ["b"]
        assert sorted(wire.engine.memo) == ["a", "b"]

    on_loop(loop, main)


def wire_now() -> float:
    return time.monotonic()


def event_of(name: str) -> Any:
    return EventIn(name, Raw(b"null"))
