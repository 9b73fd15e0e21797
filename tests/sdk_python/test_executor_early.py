"""A handler goes on before the engine knows of its step's result, where nothing else can come between; and what must hold
then: no body runs ahead of the engine, nothing is resumed after it, and nothing that was delivered is lost.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from durable.errors import EngineUnreachable, StepError
from durable.executor import Execution
from durable.testing_engine import EngineWait
from durable.wire import AliveRunAnswer, CheckpointEntry, Ended, EntryAnswer, WireRefusal
from tests.sdk_python.invocation_bench import (
    LOOPS,
    Wire,
    error_of,
    function_of,
    invoke,
    is_trio,
    new_engine,
    on_loop,
    output,
    pause,
    side_by_side,
    sleep,
    until,
    words,
)


def sent_words(wire: Wire) -> list[list[str]]:
    return [[str(op.__struct_config__.tag) for op in entry.ops] for entry in wire.entries]


@pytest.mark.parametrize("loop", LOOPS)
def test_the_handler_goes_on_at_once_and_the_next_body_waits_for_the_answer(loop: str) -> None:
    order: list[str] = []

    async def handler(event: Any, step: Any) -> int:
        first = await step.run("a", lambda: 1)
        order.append("handler has a")
        second = await step.run("b", lambda: order.append("b runs"))
        return first if second is None else 0

    async def main() -> None:
        wire = Wire(new_engine())

        async def late(entry: CheckpointEntry) -> None:
            order.append("asked")
            for _ in range(50):
                await pause()
            order.append("answered")

        wire.before = late
        ended = await invoke(function_of(handler), wire)
        assert output(ended) == 1
        assert order == ["handler has a", "asked", "answered", "b runs"]
        assert words(ended) == ["step", "complete"], "the last result travels with the end"
        assert [op.seen for op in wire.ops] == [0, 1], "a is known when b starts"  # type: ignore[union-attr]

    on_loop(loop, main)


@pytest.mark.parametrize(
    ("then", "expected_end", "expected_sent"),
    [
        ("returns", ["step", "complete"], []),
        ("raises", ["step", "fail"], []),
        ("sleeps", ["step", "sleep"], []),
        ("waits", ["step", "wait_for_event"], []),
        ("sends", ["complete"], [["step", "send_events"]]),
        ("runs beside a sleep", ["sleep"], [["step", "sleep"], ["step"]]),
    ],
)
@pytest.mark.parametrize("loop", LOOPS)
def test_a_result_shares_its_message_with_what_the_handler_does_next(
    loop: str, then: str, expected_end: list[str], expected_sent: list[list[str]]
) -> None:
    async def handler(event: Any, step: Any) -> Any:
        await step.run("a", lambda: 1)
        match then:
            case "raises":
                raise ValueError("by hand")
            case "sleeps":
                await step.sleep("s", 60)
            case "waits":
                await step.wait_for_event("w", event="x", timeout="1d")
            case "sends":
                await step.send_event("tell", {"name": "y"})
            case "runs beside a sleep":
                await side_by_side(lambda: step.sleep("s", 60), lambda: step.run("b", lambda: 2))

    async def main() -> None:
        wire = Wire(new_engine())
        ended = await invoke(function_of(handler), wire)
        assert ended is not None
        assert sent_words(wire) == expected_sent
        if then == "runs beside a sleep":
            assert words(ended) == []
        else:
            assert words(ended) == expected_end
        assert wire.engine.end(ended.generation, ended.known, ended.ops) is None
        assert "a" in wire.engine.memo
        assert wire.engine.state == {"returns": "completed", "sends": "completed", "raises": "ready"}.get(then, "waiting")

    on_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_task_group_around_the_only_step_changes_nothing(loop: str) -> None:
    async def handler(event: Any, step: Any) -> list[int]:
        got: list[int] = []

        async def child(name: str) -> None:
            got.append(await step.run(name, lambda: len(got)))

        await side_by_side(lambda: child("a"))
        await side_by_side(lambda: child("b"))
        return got

    async def main() -> None:
        wire = Wire(new_engine())
        function = function_of(handler)
        assert output(await invoke(function, wire)) == [0, 1]
        assert sent_words(wire) == [["step"]]
        assert output(await invoke(function, wire)) == [0, 1]

    on_loop(loop, main)


@pytest.mark.parametrize("status", ["stale", "cancelled"])
@pytest.mark.parametrize("way", ["checkpoint", "alive"])
@pytest.mark.parametrize("loop", LOOPS)
def test_after_stale_a_handler_that_went_on_takes_no_other_turn(loop: str, way: str, status: Any) -> None:
    """It polls something that is no step, so it would go on by itself."""
    seen: list[str] = []
    executions: list[Execution] = []

    async def handler(event: Any, step: Any) -> None:
        await step.run("a", lambda: 1)
        try:
            while True:
                seen.append("turn")
                await pause()
        finally:
            seen.append("unwound")
            try:
                await step.run("b", lambda: seen.append("b ran"))
            finally:
                seen.append("b refused")

    async def main() -> None:
        wire = Wire(new_engine())
        turns: list[int] = []

        async def answer(entry: CheckpointEntry) -> EntryAnswer:
            if way == "alive":
                executions[0].take_alive(AliveRunAnswer(entry.run_id, entry.generation, status))
            turns.append(seen.count("turn"))
            return EntryAnswer(entry.run_id, entry.generation, status)

        wire.before = answer
        assert await invoke(function_of(handler), wire, on_started=executions.append) is None
        assert seen[turns[0] :] == ["unwound", "b refused"]

    on_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_after_stale_the_next_body_does_not_start(loop: str) -> None:
    seen: list[str] = []

    async def handler(event: Any, step: Any) -> None:
        await step.run("a", lambda: 1)
        seen.append("has a")
        try:
            await step.run("b", lambda: seen.append("b ran"))
        except Exception:
            seen.append("error")
        seen.append("went on")

    async def main() -> None:
        wire = Wire(new_engine())

        async def stale(entry: CheckpointEntry) -> EntryAnswer:
            return EntryAnswer(entry.run_id, entry.generation, "stale")

        wire.before = stale
        assert await invoke(function_of(handler), wire) is None
        assert seen == ["has a"]

    on_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_an_engine_that_is_away_gets_the_delivered_result_in_the_reply(loop: str) -> None:
    seen: list[str] = []

    async def handler(event: Any, step: Any) -> None:
        await step.run("a", lambda: 1)
        seen.append("has a")
        await step.run("b", lambda: seen.append("b ran"))

    async def main() -> None:
        wire = Wire(new_engine())

        async def lost(entry: CheckpointEntry) -> EntryAnswer:
            raise EngineUnreachable("no route")

        wire.before = lost
        ended = await invoke(function_of(handler), wire)
        assert ended is not None and words(ended) == ["step", "yield"]
        assert seen == ["has a"]

    on_loop(loop, main)


@pytest.mark.parametrize("end", ["returns", "raises"])
@pytest.mark.parametrize("loop", LOOPS)
def test_a_handler_that_ends_while_the_engine_is_away_takes_its_results_with_it(loop: str, end: str) -> None:
    async def main() -> None:
        wire = Wire(new_engine())
        is_over: list[int] = []

        async def handler(event: Any, step: Any) -> str:
            await step.run("a", lambda: 1)
            await until(lambda: len(wire.entries) == 1)  # no step: the result does not wait for it
            is_over.append(1)
            if end == "raises":
                raise ValueError("by hand")
            return "done"

        async def lost(entry: CheckpointEntry) -> EntryAnswer:
            await until(lambda: bool(is_over))
            for _ in range(10):
                await pause()
            raise EngineUnreachable("no route")

        wire.before = lost
        ended = await invoke(function_of(handler), wire)
        assert words(ended) == ["step", "complete" if end == "returns" else "fail"]
        assert ended is not None
        wire.engine.end(ended.generation, ended.known, ended.ops)
        assert list(wire.engine.memo) == ["a"]

    on_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_handler_that_polls_does_not_hold_back_its_result(loop: str) -> None:
    async def main() -> None:
        wire = Wire(new_engine())

        async def handler(event: Any, step: Any) -> str:
            await step.run("a", lambda: 1)
            while not wire.engine.memo:
                await pause()
            return "told"

        assert output(await invoke(function_of(handler), wire)) == "told"
        assert sent_words(wire) == [["step"]]

    on_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_result_whose_invocation_was_dropped_before_the_answer_is_made_again(loop: str) -> None:
    ran: list[str] = []
    turns: list[str] = []

    async def handler(event: Any, step: Any) -> list[int]:
        turns.append("top")
        first = await step.run("a", body, "a")
        turns.append(f"a {first}")
        second = await step.run("b", body, "b")
        return [first, second]

    async def body(name: str) -> int:
        ran.append(name)
        return len(ran)

    async def main() -> None:
        wire = Wire(new_engine())
        asked: list[int] = []

        async def never(entry: CheckpointEntry) -> EntryAnswer:
            asked.append(1)
            raise EngineUnreachable("the process is gone")

        wire.before = never
        await drop_when(lambda: bool(asked), lambda: invoke(function_of(handler), wire))
        assert wire.engine.memo == {} and turns == ["top", "a 1"]
        wire.before = None
        assert output(await invoke(function_of(handler), wire)) == [2, 3]
        assert output(await invoke(function_of(handler), wire)) == [2, 3]
        assert ran == ["a", "a", "b"]
        assert turns == ["top", "a 1", "top", "a 2", "top", "a 2"]

    on_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_the_error_of_a_step_is_never_delivered_before_the_engine_decided(loop: str) -> None:
    async def main() -> None:
        wire = Wire(new_engine())
        seen: list[str] = []

        async def handler(event: Any, step: Any) -> str:
            try:
                await step.run("bad", fail, retries=0)
            except StepError:
                seen.append("error")
            return "compensated"

        def fail() -> None:
            raise ValueError("no")

        async def look(entry: CheckpointEntry) -> None:
            for _ in range(20):
                await pause()
            assert seen == []

        wire.before = look
        ended = await invoke(function_of(handler), wire)
        assert words(ended) == ["complete"]
        assert sent_words(wire) == [["step_error"]]

    on_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_sync_handler_waits_for_every_answer(loop: str) -> None:
    def handler(event: Any, step: Any) -> int:
        return int(step.run("a", lambda: 1) + step.run("b", lambda: 2))

    async def main() -> None:
        wire = Wire(new_engine())
        ended = await invoke(function_of(handler), wire)
        assert words(ended) == ["complete"] and output(ended) == 3
        assert sent_words(wire) == [["step"], ["step"]]

    on_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_beside_a_wait_of_the_handler_or_one_that_only_the_engine_has_the_answer_is_awaited(loop: str) -> None:
    async def main() -> None:
        for is_called in (True, False):
            wire = Wire(new_engine())
            wire.engine._open_wait(EngineWait("w", "wait_for_event", 2_000_000.0, event="x"))
            seen: list[str] = []

            async def handler(event: Any, step: Any, is_called: bool = is_called, seen: list[str] = seen) -> None:
                async def work() -> None:
                    await step.run("a", lambda: 1)
                    seen.append("a")

                async def wait() -> None:
                    if is_called:
                        await step.wait_for_event("w", event="x", timeout="1d")

                await side_by_side(work, wait)

            async def look(entry: CheckpointEntry, seen: list[str] = seen) -> None:
                for _ in range(20):
                    await pause()
                assert seen == []

            wire.before = look
            await invoke(function_of(handler), wire)
            assert seen == ["a"] and sent_words(wire) == [["step"]]

    on_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_delivered_result_survives_the_cancellation_of_its_task(loop: str) -> None:
    """The step's task is cancelled in the same turns in which it gets the result: the engine still hears of it."""

    async def main() -> None:
        wire = Wire(new_engine())

        async def handler(event: Any, step: Any) -> str:
            async def worker() -> None:
                await step.run("a", lambda: 1)
                raise ValueError("after a")

            try:
                await side_by_side(worker)
            except* ValueError:
                pass
            return str(await step.run("b", lambda: "went on"))

        function = function_of(handler)
        assert output(await invoke(function, wire)) == "went on"
        assert list(wire.engine.memo) == ["a", "b"] and not wire.engine.abandoned
        assert output(await invoke(function, wire)) == "went on"

    on_loop(loop, main)


def test_races_made_of_single_steps_take_the_same_turns_on_replay() -> None:
    async def main() -> None:
        wire = Wire(new_engine())
        turns: list[str] = []

        async def handler(event: Any, step: Any) -> list[str]:
            turns.clear()

            async def compete(name: str) -> str:
                got = str(await step.run(name, lambda: name))
                turns.append(got)
                return got

            for number in range(3):
                tasks = [asyncio.create_task(compete(f"{letter}{number}")) for letter in "xyz"]
                _, losers = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in losers:
                    task.cancel()
                if losers:
                    await asyncio.wait(losers)
                turns.append(str(await step.run(f"alone{number}", lambda number=number: number)))
            return list(turns)

        function = function_of(handler)
        first = output(await invoke(function, wire))
        for _ in range(3):
            assert output(await invoke(function, wire)) == first

    on_loop("asyncio", main)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_refusal_of_a_delivered_result_fails_the_function_whatever_it_does_meanwhile(loop: str) -> None:
    async def handler(event: Any, step: Any) -> str:
        await step.run("a", lambda: 1)
        await sleep(30)
        return "never"

    async def main() -> None:
        wire = Wire(new_engine())

        async def refuse(entry: CheckpointEntry) -> EntryAnswer:
            return EntryAnswer(entry.run_id, entry.generation, "refused", error=WireRefusal("too_large", "It is too large."))

        wire.before = refuse
        ended = await invoke(function_of(handler), wire)
        assert words(ended) == ["fail"] and error_of(ended)["code"] == "too_large"

    on_loop(loop, main)


async def drop_when(condition: Callable[[], bool], run: Callable[[], Awaitable[Ended | None]]) -> None:
    """Cancel what runs at that moment, as the end of a process does."""
    if is_trio():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await until(condition)
            nursery.cancel_scope.cancel()
    else:
        task = asyncio.ensure_future(run())
        await until(condition)
        task.cancel()
        await asyncio.wait([task])
