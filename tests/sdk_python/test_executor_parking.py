"""The end of an invocation: handlers are unwound so that nobody notices, and misuse of awaits is told with its line."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest
import trio
from msgspec import Raw

from durable import executor
from durable.errors import StepError
from durable.wire import AbandonOp, Ended
from tests.sdk_python.invocation_bench import (
    LOOPS,
    Wire,
    error_of,
    forever,
    function_of,
    invoke,
    is_trio,
    new_engine,
    on_loop,
    output,
    pause,
    side_by_side,
    sleep,
    words,
)


@pytest.mark.parametrize("loop", LOOPS)
def test_except_exception_does_not_see_the_parking(loop: str) -> None:
    seen: list[str] = []

    async def handler(event: Any, step: Any) -> None:
        try:
            await step.sleep("s", 60)
        except Exception as error:
            seen.append(repr(error))
        seen.append("went on")

    async def main() -> None:
        assert words(await invoke(function_of(handler), Wire(new_engine()))) == ["sleep"]
        assert seen == []

    on_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_step_in_finally_runs_only_at_the_real_end(loop: str) -> None:
    ran: list[str] = []

    async def handler(event: Any, step: Any) -> str:
        try:
            await step.sleep("s", 60)
            return "slept"
        finally:
            await step.run("clean-up", lambda: ran.append("clean-up"))

    async def main() -> None:
        wire = Wire(new_engine())
        ended = await invoke(function_of(handler), wire)
        assert words(ended) == ["sleep"]
        assert ran == []
        wire.engine._commit("s", "sleep", data=Raw(b"null"))
        assert output(await invoke(function_of(handler), wire)) == "slept"
        assert ran == ["clean-up"]

    on_loop(loop, main)


@pytest.mark.parametrize("how", ["returns", "raises", "goes on to a step and returns"])
@pytest.mark.parametrize("loop", LOOPS)
def test_swallowing_the_parking_fails_the_function(loop: str, how: str) -> None:
    async def handler(event: Any, step: Any) -> str:
        try:
            await step.sleep("s", 60)
        except BaseException:
            if how == "raises":
                raise RuntimeError("instead") from None
            if how != "returns":
                try:
                    await step.run("more", lambda: 1)
                except BaseException:
                    return "swallowed twice"
        return "swallowed"

    async def main() -> None:
        ended = await invoke(function_of(handler), Wire(new_engine()))
        error = error_of(ended)
        assert (error["code"], error["retriable"]) == ("park_swallowed", False)
        assert words(ended) == ["fail"], "the sleep is not reported: the run has failed"

    on_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_groups_are_unwound_whole(loop: str) -> None:
    cleaned: list[str] = []

    async def handler(event: Any, step: Any) -> None:
        async def branch(name: str) -> None:
            try:
                await step.wait_for_event(name, event=name, timeout="1d")
            finally:
                cleaned.append(name)

        await side_by_side(lambda: branch("a"), lambda: branch("b"))
        cleaned.append("never")

    async def main() -> None:
        ended = await invoke(function_of(handler), Wire(new_engine()))
        assert words(ended) == ["wait_for_event", "wait_for_event"]
        assert sorted(cleaned) == ["a", "b"]

    on_loop(loop, main)


def test_gather_that_returns_exceptions_does_not_turn_the_parking_into_a_result() -> None:
    seen: list[Any] = []

    async def handler(event: Any, step: Any) -> None:
        seen.extend(await asyncio.gather(step.sleep("a", 60), step.sleep("b", 60), return_exceptions=True))

    async def main() -> None:
        assert words(await invoke(function_of(handler), Wire(new_engine()))) == ["sleep", "sleep"]
        assert seen == []

    on_loop("asyncio", main)


def test_tasks_that_nobody_awaits_are_ended_too() -> None:
    unwound: list[str] = []

    async def handler(event: Any, step: Any) -> str:
        async def aside() -> None:
            try:
                await step.sleep("aside", 60)
            finally:
                unwound.append("aside")

        handler.task = asyncio.create_task(aside())  # type: ignore[attr-defined]
        return await step.run("a", lambda: "done")

    async def main() -> None:
        assert output(await invoke(function_of(handler), Wire(new_engine()))) == "done"
        assert unwound == ["aside"]

    on_loop("asyncio", main)


def test_a_gather_that_fails_ends_the_handler_though_a_branch_still_waits() -> None:
    """gather() leaves its other branches running; they must neither be delivered nor leaked."""

    async def handler(event: Any, step: Any) -> None:
        async def failing() -> None:
            await step.run("bad", fail, retries=0)

        await asyncio.gather(failing(), step.sleep("long", 3600), step.run("slow", forever))

    def fail() -> None:
        raise ValueError("no")

    async def main() -> None:
        wire = Wire(new_engine())
        ended = await invoke(function_of(handler), wire)
        assert error_of(ended)["name"] == "ValueError"
        assert words(ended)[-1] == "fail"

    on_loop("asyncio", main)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_failed_step_ends_its_group_and_abandons_its_siblings(loop: str) -> None:
    cancelled: list[str] = []

    async def handler(event: Any, step: Any) -> str:
        async def failing() -> None:
            await step.run("bad", fail, retries=0)

        async def waiting() -> None:
            await step.wait_for_event("w", event="x", timeout="1d")

        async def working() -> None:
            await step.run("slow", work)

        try:
            await side_by_side(failing, waiting, working)
        except* StepError:
            pass
        return await step.run("after", lambda: "went on")

    def fail() -> None:
        raise ValueError("no")

    async def work() -> None:
        try:
            await forever()
        finally:
            cancelled.append("slow")

    async def main() -> None:
        wire = Wire(new_engine())
        function = function_of(handler)
        assert output(await invoke(function, wire)) == "went on"
        abandoned = [step_id for op in wire.ops if isinstance(op, AbandonOp) for step_id in op.ids]
        assert sorted(abandoned) == ["slow", "w"]
        assert cancelled == ["slow"]
        assert wire.engine.open_waits == {}
        # And the same on replay, where nothing is left to do.
        entries = len(wire.entries)
        assert output(await invoke(function, wire)) == "went on"
        assert all(isinstance(op, AbandonOp) for entry in wire.entries[entries:] for op in entry.ops)

    on_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_users_own_timeout_around_a_step_is_refused_with_the_advice(loop: str) -> None:
    seen: list[str] = []

    async def handler(event: Any, step: Any) -> None:
        if is_trio():
            with trio.move_on_after(0.02):
                await step.run("slow", forever)
        else:
            async with asyncio.timeout(0.02):
                await step.run("slow", forever)
        seen.append("went on")

    async def main() -> None:
        ended = await invoke(function_of(handler), Wire(new_engine()))
        error = error_of(ended)
        assert error["code"] == "step_usage"
        assert "timeout=" in error["message"] and "race" in error["message"]
        assert not error["retriable"]
        assert seen == []

    on_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_users_timeout_that_does_not_fire_is_harmless(loop: str) -> None:
    async def handler(event: Any, step: Any) -> str:
        if is_trio():
            with trio.fail_after(60):
                await step.run("quick", lambda: 1)
                await step.sleep("s", 3600)
        else:
            async with asyncio.timeout(60):
                await step.run("quick", lambda: 1)
                await step.sleep("s", 3600)
        return "done"

    async def main() -> None:
        wire = Wire(new_engine())
        assert words(await invoke(function_of(handler), wire)) == ["step", "sleep"]
        wire.engine._commit("quick", "step", data=Raw(b"1"))
        wire.engine._commit("s", "sleep", data=Raw(b"null"))
        assert output(await invoke(function_of(handler), wire)) == "done"

    on_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_an_await_that_is_no_step_gets_a_moment_and_then_a_warning_with_its_line(
    loop: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(event: Any, step: Any) -> None:
        async def aside() -> None:
            await sleep(3600)  # the line that is named

        async def beside() -> None:
            await step.sleep("s", 60)

        await side_by_side(aside, beside)

    async def main() -> None:
        with caplog.at_level(logging.WARNING, "durable"):
            assert words(await invoke(function_of(handler), Wire(new_engine()))) == ["sleep"]

    on_loop(loop, main)
    (record,) = caplog.records
    assert "test_executor_parking.py:" in record.getMessage() or "invocation_bench.py:" in record.getMessage()
    assert "no step" in record.getMessage()


@pytest.mark.parametrize("loop", LOOPS)
def test_a_short_await_that_is_no_step_is_waited_for_without_a_warning(
    loop: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "OUTSIDE_GRACE_SECONDS", 10)  # a busy machine may be late

    async def handler(event: Any, step: Any) -> None:
        async def aside() -> None:
            await sleep(0.02)
            await step.run("after-it", lambda: 1)

        async def beside() -> None:
            await step.sleep("s", 60)

        await side_by_side(aside, beside)

    async def main() -> None:
        wire = Wire(new_engine())
        ended = await invoke(function_of(handler), wire)
        assert words(ended) in (["sleep"], [])
        assert "after-it" in wire.engine.memo

    on_loop(loop, main)
    assert caplog.records == []


@pytest.mark.parametrize("loop", LOOPS)
def test_a_handler_that_only_awaits_other_things_is_waited_for_and_warned_of(loop: str, caplog: pytest.LogCaptureFixture) -> None:
    async def handler(event: Any, step: Any) -> str:
        await sleep(0.3)
        return "late"

    async def main() -> None:
        assert output(await invoke(function_of(handler), Wire(new_engine()))) == "late"

    on_loop(loop, main)
    assert ["no step" in record.getMessage() for record in caplog.records] == [True]


@pytest.mark.parametrize("loop", LOOPS)
def test_locks_and_queues_between_tasks_of_the_handler_do_not_hold_the_end(
    loop: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "OUTSIDE_GRACE_SECONDS", 60)  # would be noticed

    async def handler(event: Any, step: Any) -> None:
        done = trio.Event() if is_trio() else asyncio.Event()

        async def waiter() -> None:
            await done.wait()

        async def sleeper() -> None:
            await step.sleep("s", 60)
            done.set()

        await side_by_side(waiter, sleeper)

    async def main() -> None:
        loop_time = trio.current_time if is_trio() else asyncio.get_running_loop().time
        began = loop_time()
        assert words(await invoke(function_of(handler), Wire(new_engine()))) == ["sleep"]
        assert loop_time() - began < 10

    on_loop(loop, main)
    assert caplog.records == []


def test_a_handler_that_catches_everything_in_a_loop_does_not_hold_the_loop() -> None:
    """It can not be ended kindly; the other runs of the process must go on."""
    others: list[int] = []

    async def stubborn(event: Any, step: Any) -> None:
        for _ in range(5_000):
            try:
                await step.wait_for_event("w", event="x", timeout=60)
            except BaseException:
                continue

    async def main() -> None:
        async def other() -> None:
            for number in range(20):
                await pause()
                others.append(number)

        task = asyncio.create_task(other())
        ended = await invoke(function_of(stubborn), Wire(new_engine()))
        assert error_of(ended)["code"] == "park_swallowed"
        await task

    on_loop("asyncio", main)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_user_who_cancels_the_loser_of_a_race_abandons_it(loop: str) -> None:
    async def handler(event: Any, step: Any) -> str:
        winner: list[str] = []
        if is_trio():
            async with trio.open_nursery() as nursery:

                async def compete(name: str, call: Callable[[], Any]) -> None:
                    await call()
                    winner.append(name)
                    nursery.cancel_scope.cancel()

                nursery.start_soon(compete, "quick", lambda: step.run("quick", lambda: 1))
                nursery.start_soon(compete, "slow", lambda: step.wait_for_event("slow", event="x", timeout="1d"))
        else:
            tasks = {
                asyncio.create_task(step.run("quick", lambda: 1), name="quick"),
                asyncio.create_task(step.wait_for_event("slow", event="x", timeout="1d"), name="slow"),
            }
            done, losers = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            winner += [task.get_name() for task in done]
            for task in losers:
                task.cancel()
            await asyncio.wait(losers)
        await step.sleep("s", 60)
        return winner[0]

    async def main() -> None:
        wire = Wire(new_engine())
        ended = await invoke(function_of(handler), wire)
        assert ended is not None
        wire.engine.end(ended.generation, ended.known, ended.ops)
        assert list(wire.engine.open_waits) == ["s"]
        wire.engine.now += 60
        wire.engine.resolve_due_waits()
        assert output(await invoke(function_of(handler), wire)) == "quick"

    on_loop(loop, main)


def test_64_runs_at_once_leave_nothing_behind() -> None:
    async def handler(event: Any, step: Any) -> int:
        total = 0
        for name in ("a", "b", "c"):
            total += await step.run(name, one)
        return total

    async def one() -> int:
        await pause()
        return 1

    async def main() -> None:
        function = function_of(handler)
        ended: list[Ended | None] = await asyncio.gather(*(invoke(function, Wire(new_engine())) for _ in range(64)))
        assert [output(each) for each in ended] == [3] * 64

    on_loop("asyncio", main)
