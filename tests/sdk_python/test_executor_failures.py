"""Steps that fail, code that changed, leases that end: what the function sees and what the engine is told."""

import asyncio
import time
from typing import Any

import pytest

from durable.errors import EngineUnreachable, NonRetriableError, RetryAfterError, StepError
from durable.step import Step
from durable.wire import Backoff, CheckpointEntry, EntryAnswer, StepErrorOp, StepOp
from tests.sdk_python.invocation_bench import (
    LOOPS,
    Raw,
    Wire,
    error_of,
    forever,
    function_of,
    invoke,
    new_engine,
    on_loop,
    output,
    pause,
    side_by_side,
    until,
    words,
)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_failed_step_parks_and_is_tried_again_with_the_next_attempt(loop: str) -> None:
    tries: list[int] = []

    async def handler(event: Any, step: Any) -> str:
        return await step.run("flaky", flaky)

    async def flaky() -> str:
        tries.append(1)
        if len(tries) < 3:
            raise ConnectionError(f"try {len(tries)}")
        return "ok"

    async def main() -> None:
        wire = Wire(new_engine())
        function = function_of(handler)
        for expected_pause in (1, 2):
            ended = await invoke(function, wire)
            assert words(ended) == [], "the engine knows of the retry; nothing more is to say"
            assert ended is not None
            assert wire.engine.end(ended.generation, ended.known, ended.ops) is None
            assert wire.engine.due_at == wire.engine.now + expected_pause
            wire.engine.now += expected_pause
        assert output(await invoke(function, wire)) == "ok"
        assert [(type(op).__name__, op.attempt) for op in wire.ops] == [("StepErrorOp", 1), ("StepErrorOp", 2), ("StepOp", 3)]  # type: ignore[union-attr]

    on_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_retry_that_is_due_runs_again_in_the_invocation_while_another_body_keeps_it_alive(loop: str) -> None:
    tries: list[int] = []

    async def handler(event: Any, step: Any) -> None:
        await side_by_side(lambda: step.run("flaky", flaky), lambda: step.run("long", long))

    async def flaky() -> None:
        tries.append(1)
        if len(tries) == 1:
            raise ConnectionError("first")

    async def long() -> None:
        await until(lambda: len(tries) == 2)

    async def main() -> None:
        wire = Wire(new_engine())
        wire.engine.backoff = Backoff(initial_seconds=0.05, jitter=False)
        output(await invoke(function_of(handler), wire))
        assert [op.attempt for op in wire.ops if op.id == "flaky"] == [1, 2]  # type: ignore[union-attr]

    on_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_final_step_error_is_raised_at_the_step_and_can_be_compensated(loop: str) -> None:
    async def handler(event: Any, step: Any) -> Any:
        try:
            await step.run("charge", charge)
        except StepError as error:
            return [error.name, error.message, error.code, error.step_id]

    def charge() -> None:
        raise NonRetriableError("card declined", code="declined")

    async def main() -> None:
        wire = Wire(new_engine())
        expected = ["NonRetriableError", "card declined", "declined", "charge"]
        assert output(await invoke(function_of(handler), wire)) == expected
        assert output(await invoke(function_of(handler), wire)) == expected, "on replay too"
        (op,) = wire.ops
        assert isinstance(op, StepErrorOp) and not op.retriable

    on_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_an_uncaught_step_error_fails_the_function_with_the_words_of_the_body(loop: str) -> None:
    async def handler(event: Any, step: Any) -> None:
        await side_by_side(lambda: step.run("a", fail, retries=0))

    def fail() -> None:
        raise KeyError("lost")

    async def main() -> None:
        error = error_of(await invoke(function_of(handler), Wire(new_engine())))
        assert (error["name"], error["message"], error["retriable"]) == ("KeyError", "'lost'", True)

    on_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_options_of_a_step_and_the_pause_of_its_error_travel(loop: str) -> None:
    async def handler(event: Any, step: Any) -> None:
        await step.run("a", fail, retries=7, backoff=Backoff(initial_seconds=9))

    def fail() -> None:
        raise RetryAfterError("90s", "busy")

    async def main() -> None:
        wire = Wire(new_engine())
        await invoke(function_of(handler), wire)
        (op,) = wire.ops
        assert isinstance(op, StepErrorOp)
        assert (op.retries, op.backoff, op.retry_after_seconds, op.retriable) == (7, Backoff(initial_seconds=9), 90.0, True)

    on_loop(loop, main)


@pytest.mark.parametrize("is_async", [True, False], ids=["async body", "sync body"])
@pytest.mark.parametrize("loop", LOOPS)
def test_a_body_that_takes_too_long_is_a_retriable_step_timeout(loop: str, is_async: bool) -> None:
    release: list[int] = []

    async def handler(event: Any, step: Any) -> None:
        await step.run("slow", forever if is_async else block, timeout=0.05)

    def block() -> None:
        while not release:
            time.sleep(0.005)

    async def main() -> None:
        wire = Wire(new_engine())
        try:
            assert words(await invoke(function_of(handler), wire)) == []
        finally:
            release.append(1)
        (op,) = wire.ops
        assert isinstance(op, StepErrorOp) and op.retriable
        assert b'"code": "step_timeout"' in bytes(op.error)
        assert list(wire.engine.waiting_retries) == ["slow"]

    on_loop(loop, main)


@pytest.mark.parametrize("value", [{1, 2}, object(), float("nan"), "x" * (4 << 20)], ids=["set", "object", "nan", "5 MiB"])
@pytest.mark.parametrize("loop", LOOPS)
def test_a_result_that_is_no_json_fails_the_step_without_retries(loop: str, value: Any) -> None:
    async def handler(event: Any, step: Any) -> None:
        await step.run("bad", lambda: value)

    async def main() -> None:
        wire = Wire(new_engine())
        error = error_of(await invoke(function_of(handler), wire))
        assert "'bad'" in error["message"]
        assert not wire.ops[0].retriable  # type: ignore[union-attr]

    on_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_an_output_that_is_no_json_fails_the_function(loop: str) -> None:
    async def handler(event: Any, step: Any) -> Any:
        return {1, 2}

    async def main() -> None:
        error = error_of(await invoke(function_of(handler), Wire(new_engine())))
        assert "returned" in error["message"] and not error["retriable"]

    on_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_an_error_outside_of_steps_fails_the_function_and_keeps_results_that_wait(loop: str) -> None:
    async def main() -> None:
        wire = Wire(new_engine())
        finished: list[str] = []

        async def handler(event: Any, step: Any) -> None:
            async def failing() -> None:
                await step.run("first", lambda: 1)
                raise ValueError("by hand")

            await side_by_side(failing, lambda: step.run("second", second))

        async def second() -> str:
            await until(lambda: len(wire.entries) == 1)
            finished.append("second")
            return "kept"

        async def hold(entry: CheckpointEntry) -> EntryAnswer | None:
            await until(lambda: finished == ["second"])
            for _ in range(20):
                await pause()
            return None

        wire.before = hold
        ended = await invoke(function_of(handler), wire)
        assert error_of(ended)["name"] == "ValueError"
        assert error_of(ended)["retriable"]

    on_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_one_id_in_two_tasks_is_ambiguous_and_final(loop: str) -> None:
    ran: list[int] = []

    async def handler(event: Any, step: Any) -> None:
        await side_by_side(lambda: step.run("same", lambda: ran.append(1)), lambda: step.run("same", lambda: ran.append(2)))

    async def main() -> None:
        wire = Wire(new_engine())
        error = error_of(await invoke(function_of(handler), wire))
        assert (error["code"], error["retriable"]) == ("ambiguous_step_id", False)
        assert "'same'" in error["message"]
        assert ran == [] and wire.entries == []

    on_loop(loop, main)


@pytest.mark.parametrize("known", ["memo", "waiting"])
@pytest.mark.parametrize("loop", LOOPS)
def test_a_step_of_another_kind_than_remembered_is_a_retriable_code_mismatch(loop: str, known: str) -> None:
    async def handler(event: Any, step: Any) -> None:
        try:
            await step.run("x", lambda: 1)
        except Exception:
            return  # catching it does not help: the run must not go on

    async def main() -> None:
        wire = Wire(new_engine())
        if known == "memo":
            wire.engine._commit("x", "sleep", data=Raw(b"null"))
        else:
            wire.engine._open_wait(_wait("x"))
        error = error_of(await invoke(function_of(handler), wire))
        assert (error["code"], error["retriable"]) == ("code_mismatch", True)
        assert "'x'" in error["message"]

    on_loop(loop, main)


@pytest.mark.parametrize(("left_seconds", "checkpoints"), [(30.0, 0), (1.5, 1)], ids=["long lease", "short lease"])
@pytest.mark.parametrize("loop", LOOPS)
def test_a_body_starts_on_a_short_lease_only_after_an_empty_checkpoint(loop: str, left_seconds: float, checkpoints: int) -> None:
    async def main() -> None:
        wire = Wire(new_engine())

        async def handler(event: Any, step: Any) -> int:
            return await step.run("a", lambda: len(wire.entries))

        ended = await invoke(function_of(handler), wire, lease_seconds=left_seconds)
        assert output(ended) == checkpoints
        assert [len(entry.ops) for entry in wire.entries] == [0] * checkpoints

    on_loop(loop, main)


@pytest.mark.parametrize("answer", ["stale", "nothing"])
@pytest.mark.parametrize("loop", LOOPS)
def test_without_a_new_lease_nothing_starts(loop: str, answer: str) -> None:
    ran: list[int] = []

    async def handler(event: Any, step: Any) -> None:
        await step.run("a", lambda: ran.append(1))

    async def main() -> None:
        wire = Wire(new_engine())

        async def no_lease(entry: CheckpointEntry) -> EntryAnswer:
            if answer == "stale":
                return EntryAnswer(entry.run_id, entry.generation, "stale")
            raise EngineUnreachable("no route")

        wire.before = no_lease
        ended = await invoke(function_of(handler), wire, received_at=time.monotonic() - 29)
        assert ended is None if answer == "stale" else words(ended) == ["yield"]
        assert ran == []

    on_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_lease_that_stays_short_does_not_keep_bodies_from_starting(loop: str) -> None:
    async def handler(event: Any, step: Any) -> int:
        return await step.run("a", lambda: 1) + await step.run("b", lambda: 1)

    async def main() -> None:
        wire = Wire(new_engine())

        async def short(entry: CheckpointEntry) -> EntryAnswer:
            from msgspec.structs import replace

            return replace(wire.engine.checkpoint(entry.generation, entry.known, entry.ops), lease_seconds=1.0)

        wire.before = short
        assert output(await invoke(function_of(handler), wire, lease_seconds=1.0)) == 2
        assert [len(entry.ops) for entry in wire.entries] == [0, 1], "one check of the lease, then the result that b waits for"

    on_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_steps_inside_of_a_body_are_refused(loop: str) -> None:
    async def handler(event: Any, step: Step) -> None:
        async def outer() -> None:
            await step.run("inner", lambda: 1)

        await step.run("outer", outer)

    async def main() -> None:
        error = error_of(await invoke(function_of(handler), Wire(new_engine())))
        assert error["code"] == "step_usage" and "'inner'" in error["message"]

    on_loop(loop, main)


def test_a_retry_known_from_the_call_gives_the_attempt() -> None:
    async def handler(event: Any, step: Any) -> None:
        await step.run("a", lambda: None)

    async def main() -> None:
        wire = Wire(new_engine())
        wire.engine.waiting_retries["a"] = _retry("a", 4)
        output(await invoke(function_of(handler), wire))
        (op,) = wire.ops
        assert isinstance(op, StepOp) and op.attempt == 4

    on_loop("asyncio", main)


def test_an_abandoned_body_in_the_outbox_is_not_reported() -> None:
    """The winner is delivered while the loser's result waits for the next checkpoint."""

    async def main() -> None:
        wire = Wire(new_engine())
        done: list[str] = []

        async def handler(event: Any, step: Any) -> str:
            winner, loser = asyncio.create_task(step.run("w", body, "w")), asyncio.create_task(step.run("l", late))
            await asyncio.wait([winner, loser], return_when=asyncio.FIRST_COMPLETED)
            loser.cancel()
            await asyncio.wait([loser])
            return await step.run("after", body, "after")

        async def body(name: str) -> str:
            return name

        async def late() -> None:
            await until(lambda: bool(wire.entries))
            done.append("l")

        async def hold(entry: CheckpointEntry) -> None:
            if len(wire.entries) == 1:
                await until(lambda: done == ["l"])
                for _ in range(10):
                    await pause()

        wire.before = hold
        assert output(await invoke(function_of(handler), wire)) == "after"
        assert "l" not in wire.engine.memo and "l" in wire.engine.abandoned

    on_loop("asyncio", main)


def _wait(step_id: str) -> Any:
    from durable.testing_engine import EngineWait

    return EngineWait(step_id, "sleep", 2_000_000.0)


def _retry(step_id: str, attempt: int) -> Any:
    from durable.testing_engine import EngineRetry

    return EngineRetry(step_id, attempt, 0.0)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_body_that_cancels_itself_or_exits_fails_as_any_other(loop: str) -> None:
    async def handler(event: Any, step: Any) -> list[str]:
        names = []
        for step_id, body in (("cancels", cancels), ("exits", exits), ("exits in a thread", exits_in_thread)):
            try:
                await step.run(step_id, body, retries=0)
            except StepError as error:
                names.append(error.name)
        return names

    async def cancels() -> None:
        raise asyncio.CancelledError

    async def exits() -> None:
        raise SystemExit(1)

    def exits_in_thread() -> None:
        raise SystemExit(1)

    async def main() -> None:
        assert output(await invoke(function_of(handler), Wire(new_engine()))) == ["CancelledError", "SystemExit", "SystemExit"]

    on_loop(loop, main)
