"""What the engine answers to checkpoints, and what follows: stale, cancelled, refused, silent, or short of a result."""

from typing import Any

import pytest

from durable.errors import EngineUnreachable
from durable.executor import Execution
from durable.wire import AliveRunAnswer, CheckpointEntry, EntryAnswer, MemoEntry, WireRefusal
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
    side_by_side,
    words,
)


@pytest.mark.parametrize("status", ["stale", "cancelled"])
@pytest.mark.parametrize("loop", LOOPS)
def test_after_stale_or_cancelled_nothing_starts_and_nothing_is_said(loop: str, status: Any) -> None:
    seen: list[str] = []

    async def handler(event: Any, step: Any) -> None:
        async def worker() -> None:
            try:
                await step.run("long", long)
            except Exception:
                seen.append("long raised")

        async def first() -> None:
            await step.run("first", lambda: 1)
            seen.append("resumed")
            await step.run("next", lambda: seen.append("next ran"))

        await side_by_side(worker, first)

    async def long() -> None:
        try:
            await forever()
        finally:
            seen.append("long cancelled")

    async def main() -> None:
        wire = Wire(new_engine())

        async def answer(entry: CheckpointEntry) -> EntryAnswer:
            return EntryAnswer(entry.run_id, entry.generation, status)

        wire.before = answer
        assert await invoke(function_of(handler), wire) is None
        assert seen == ["long cancelled"]

    on_loop(loop, main)


@pytest.mark.parametrize(("code", "retriable"), [("too_large", False), ("code_mismatch", True)])
@pytest.mark.parametrize("loop", LOOPS)
def test_a_refused_entry_fails_the_function_with_the_words_of_the_refusal(loop: str, code: str, retriable: bool) -> None:
    async def handler(event: Any, step: Any) -> None:
        await step.run("a", lambda: 1)
        await step.run("b", lambda: 2)

    async def main() -> None:
        wire = Wire(new_engine())

        async def refuse(entry: CheckpointEntry) -> EntryAnswer:
            return EntryAnswer(entry.run_id, entry.generation, "refused", error=WireRefusal(code, "It is wrong.", "Do better."))

        wire.before = refuse
        error = error_of(await invoke(function_of(handler), wire))
        assert (error["code"], error["message"], error["retriable"]) == (code, "It is wrong. Do better.", retriable)

    on_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_results_that_no_checkpoint_could_carry_travel_in_the_reply(loop: str) -> None:
    async def handler(event: Any, step: Any) -> None:
        await step.run("a", lambda: 1)
        await step.run("b", lambda: 2)

    async def main() -> None:
        wire = Wire(new_engine())

        async def lost(entry: CheckpointEntry) -> EntryAnswer:
            raise EngineUnreachable("no route")

        wire.before = lost
        ended = await invoke(function_of(handler), wire)
        assert ended is not None
        assert words(ended) == ["step", "yield"]
        wire.engine.end(ended.generation, ended.known, ended.ops)
        assert list(wire.engine.memo) == ["a"], "so the run advances"

    on_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_result_that_the_answer_does_not_mention_does_not_hold_the_handler_for_ever(loop: str) -> None:
    async def handler(event: Any, step: Any) -> None:
        await step.run("a", lambda: 1)
        await step.run("b", lambda: 2)

    async def main() -> None:
        wire = Wire(new_engine())

        async def mute(entry: CheckpointEntry) -> EntryAnswer:
            return EntryAnswer(entry.run_id, entry.generation, "ok", lease_seconds=30)

        wire.before = mute
        assert words(await invoke(function_of(handler), wire)) == ["yield"]

    on_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_result_of_another_generation_replaces_the_body_that_runs(loop: str) -> None:
    """The engine tells of a result for a step that is open here: the body's own result no longer counts."""
    cancelled: list[int] = []

    async def handler(event: Any, step: Any) -> Any:
        results: list[Any] = []

        async def take(name: str, body: Any) -> None:
            results.append(await step.run(name, body))

        await side_by_side(lambda: take("slow", slow), lambda: take("quick", lambda: "quick"))
        return results

    async def slow() -> str:
        try:
            await forever()
        finally:
            cancelled.append(1)
        return "never"

    async def main() -> None:
        wire = Wire(new_engine())

        async def tell(entry: CheckpointEntry) -> EntryAnswer:
            resolved = [MemoEntry("slow", "step", 1, data=Raw(b'"theirs"')), MemoEntry("quick", "step", 2)]
            return EntryAnswer(entry.run_id, entry.generation, "ok", lease_seconds=30, resolved=resolved)

        wire.before = tell
        assert output(await invoke(function_of(handler), wire)) == ["theirs", "quick"]
        assert cancelled == [1]

    on_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_broken_sender_is_told_to_the_caller_and_does_not_hang(loop: str) -> None:
    async def handler(event: Any, step: Any) -> None:
        await step.run("a", lambda: 1)
        await step.run("b", lambda: 2)

    async def main() -> None:
        wire = Wire(new_engine())

        async def broken(entry: CheckpointEntry) -> EntryAnswer:
            raise ZeroDivisionError("bug")

        wire.before = broken
        with pytest.raises((ZeroDivisionError, ExceptionGroup)) as caught:
            await invoke(function_of(handler), wire)
        assert "bug" in repr(caught.value)

    on_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_result_that_comes_without_its_data_is_never_taken_for_none(loop: str) -> None:
    seen: list[Any] = []

    async def handler(event: Any, step: Any) -> None:
        seen.append(await step.wait_for_event("w", event="x", timeout="1h"))

    async def racing(event: Any, step: Any) -> None:
        await side_by_side(lambda: handler(event, step), lambda: step.run("a", lambda: 1))

    async def main() -> None:
        wire = Wire(new_engine())

        async def bare(entry: CheckpointEntry) -> EntryAnswer:
            resolved = [MemoEntry("w", "wait_for_event", 1), MemoEntry("a", "step", 2)]
            return EntryAnswer(entry.run_id, entry.generation, "ok", lease_seconds=30, resolved=resolved)

        wire.before = bare
        assert words(await invoke(function_of(racing), wire))[-1] == "yield"
        assert seen == []

    on_loop(loop, main)


@pytest.mark.parametrize("way", ["checkpoint", "alive"])
@pytest.mark.parametrize("loop", LOOPS)
def test_an_answer_that_can_not_be_taken_ends_the_invocation_with_its_error(loop: str, way: str) -> None:
    """Else it would wait for ever, with a lease that is kept for it."""
    executions: list[Execution] = []

    async def handler(event: Any, step: Any) -> None:
        await step.run("a", lambda: 1)
        await step.run("b", forever)

    async def main() -> None:
        wire = Wire(new_engine())
        broken = MemoEntry("a", "1", "step")  # type: ignore[arg-type]  # what no decoder lets through

        async def answer(entry: CheckpointEntry) -> EntryAnswer:
            if way == "alive":
                executions[0].take_alive(AliveRunAnswer(entry.run_id, entry.generation, "ok", resolved=[broken]))
            return EntryAnswer(entry.run_id, entry.generation, "ok", lease_seconds=30.0, resolved=[broken])

        wire.before = answer
        with pytest.raises((TypeError, ExceptionGroup)):
            await invoke(function_of(handler), wire, on_started=executions.append)

    on_loop(loop, main)
