"""`durable.testing`: runs in memory with a clock that the test moves; and its engine against the protocol's vectors."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Raw

import durable.testing
from durable import testing
from durable.errors import NonRetriableError, RetryAfterError, StepUsageError
from durable.function import Function, define_function
from durable.testing_engine import EngineRetry, EngineRun, EngineWait
from durable.triggers import Event
from durable.wire import Backoff, Op, WireEvent
from tests.sdk_python.invocation_bench import LOOPS, on_loop, side_by_side

START = datetime(2026, 1, 31, 9, tzinfo=UTC)
INVOKE_END = json.loads((Path(__file__).parents[2] / "protocol" / "vectors" / "invoke_end.json").read_text())["cases"]


def function_of(handler: Any, **options: Any) -> Function:
    return define_function(handler, triggers=Event("user.created"), function_id="f", **options)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_run_is_told_in_the_words_of_a_test(loop: str) -> None:
    async def onboarding(event: Any, step: Any) -> str:
        user = await step.run("load-user", lambda: {"id": event.data["id"]})
        await step.sleep("cooldown", "2d")
        approved = await step.wait_for_event("approve", event="approved", match={"user": user["id"]}, timeout="1w")
        return "welcome" if approved is not None else "too late"

    async def main() -> None:
        run = await testing.start(function_of(onboarding), {"id": 7}, event="user.created", now=START)
        assert (run.status, run.steps, run.waiting) == ("waiting", {"load-user": {"id": 7}}, ["cooldown"])
        await run.advance("47h59m")
        assert run.waiting == ["cooldown"]
        await run.advance("1m")
        assert run.waiting == ["approve"] and run.now == START + timedelta(days=2)
        await run.send("approved", {"user": 8})
        assert run.status == "waiting"
        await run.send("approved", {"user": 7})
        assert (run.status, run.output, run.error) == ("completed", "welcome", None)
        assert list(run.steps) == ["load-user", "cooldown", "approve"]
        assert run.invocations == 3

    on_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_timeouts_come_at_their_own_instants(loop: str) -> None:
    seen: list[Any] = []

    async def handler(event: Any, step: Any) -> None:
        for hours in (3, 1, 2):
            got = await step.wait_for_event("w", event="x", timeout=f"{hours}h")
            seen.append(got)

    async def main() -> None:
        run = await testing.start(function_of(handler), now=START)
        await run.advance("100h")
        assert run.status == "completed" and run.output is None
        assert list(run.steps) == ["w", "w#2", "w#3"]
        assert run.now == START + timedelta(hours=100)

    on_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_retries_wait_on_the_clock_of_the_test(loop: str) -> None:
    tries: list[int] = []

    async def handler(event: Any, step: Any) -> str:
        return await step.run("flaky", flaky, retries=4, backoff=Backoff(initial_seconds=60))

    def flaky() -> str:
        tries.append(1)
        if len(tries) == 1:
            raise RetryAfterError("1h")
        if len(tries) < 4:
            raise OSError("again")
        return "ok"

    async def main() -> None:
        run = await testing.start(function_of(handler), now=START)
        assert (run.waiting, len(tries)) == (["flaky"], 1)
        await run.advance("59m")
        assert len(tries) == 1
        await run.advance("1m")
        assert len(tries) == 2
        await run.advance_until_ended()
        assert (run.status, run.output, len(tries)) == ("completed", "ok", 4)
        assert run.now == START + timedelta(hours=1, seconds=120 + 240)

    on_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_failed_run_shows_its_error_and_that_of_its_step(loop: str) -> None:
    async def handler(event: Any, step: Any) -> None:
        await step.run("charge", charge)

    def charge() -> None:
        raise NonRetriableError("declined", code="card_declined")

    async def main() -> None:
        run = await testing.start(function_of(handler, retries=0))
        assert run.status == "failed"
        assert run.error is not None and run.error.message == "declined" and run.error.code == "card_declined"
        assert run.step_errors["charge"].name == "NonRetriableError"
        with pytest.raises(AssertionError, match="failed"):
            _ = run.output

    on_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_the_function_itself_is_tried_again_by_its_policy(loop: str) -> None:
    attempts: list[int] = []

    async def handler(event: Any, step: Any) -> None:
        attempts.append(step.attempt)
        raise ValueError("always")

    async def main() -> None:
        run = await testing.start(function_of(handler, retries=2, backoff=Backoff(initial_seconds=10, factor=3)), now=START)
        assert run.status == "waiting" and run.error is not None
        await run.advance_until_ended()
        assert (run.status, attempts) == ("failed", [1, 2, 3])
        assert run.now == START + timedelta(seconds=40)

    on_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_events_are_found_by_later_waits_and_taken_once(loop: str) -> None:
    async def handler(event: Any, step: Any) -> list[Any]:
        got = []
        await step.sleep("first", "1h")
        for _ in range(3):
            event = await step.wait_for_event("next", event="tick", timeout="1h")
            got.append(None if event is None else event.data)
        return got

    async def main() -> None:
        run = await testing.start(function_of(handler))
        await run.send("tick", 1)
        await run.send("tick", 2)
        await run.advance("1h")
        assert run.waiting == ["next#3"]
        await run.advance("1h")
        assert run.output == [1, 2, None]

    on_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_sent_events_are_seen_and_can_wake_the_run_itself(loop: str) -> None:
    async def handler(event: Any, step: Any) -> Any:
        async def hear() -> None:
            heard.append((await step.wait_for_event("hear", event="ping", timeout="1h")).data)

        async def tell() -> None:
            await step.send_event("tell", {"name": "ping", "data": {"n": 1}})

        heard: list[Any] = []
        await side_by_side(hear, tell)
        return heard

    async def main() -> None:
        run = await testing.start(function_of(handler))
        assert run.output == [{"n": 1}]
        assert [event["name"] for event in run.sent_events] == ["ping"]

    on_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_expressions_are_decided_by_the_test_or_refused(loop: str) -> None:
    async def handler(event: Any, step: Any) -> Any:
        return (await step.wait_for_event("w", event="x", if_="event.data.n > 1", timeout="1h")).data

    async def main() -> None:
        run = await testing.start(function_of(handler))
        with pytest.raises(durable.testing.ExpressionNotEvaluated, match="evaluate_if"):
            await run.send("x", {"n": 2})
        run = await testing.start(function_of(handler), evaluate_if=lambda expression, event: event["data"]["n"] > 1)
        await run.send("x", {"n": 1})
        assert run.status == "waiting"
        await run.send("x", {"n": 2})
        assert run.output == {"n": 2}

    on_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_cancelled_run_does_nothing_more(loop: str) -> None:
    async def handler(event: Any, step: Any) -> None:
        await step.sleep("s", "1h")
        raise AssertionError("resumed")

    async def main() -> None:
        run = await testing.start(function_of(handler))
        run.cancel()
        await run.advance("2h")
        assert run.status == "cancelled" and run.waiting == []

    on_loop(loop, main)


def test_the_sync_form_works_for_async_and_sync_functions() -> None:
    async def handler(event: Any, step: Any) -> Any:
        await step.sleep("s", "1d")
        return (await step.wait_for_event("w", event="x", timeout="1d")).data

    def sync_handler(event: Any, step: Any) -> Any:
        step.sleep("s", "1d")
        return step.wait_for_event("w", event="x", timeout="1d").data

    for each in (handler, sync_handler):
        run = testing.start_sync(function_of(each))
        run.advance("1d")
        run.send("x", [1])
        assert (run.status, run.output, run.invocations) == ("completed", [1], 3)
        assert "completed" in repr(run)


def test_the_sync_form_says_so_when_a_loop_is_running() -> None:
    async def handler(event: Any, step: Any) -> None: ...

    async def main() -> None:
        with pytest.raises(StepUsageError, match=r"await durable\.testing\.start"):
            testing.start_sync(function_of(handler))

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(main())


def test_something_that_is_no_function_is_refused() -> None:
    async def handler(event: Any, step: Any) -> None: ...

    with pytest.raises(StepUsageError, match=r"app\.function"):
        testing.start_sync(handler)  # type: ignore[arg-type]


# The engine of it, against the vectors.


@pytest.mark.parametrize("case", INVOKE_END, ids=lambda case: case["name"])
def test_the_engine_in_memory_ends_invocations_as_the_vector_says(case: dict[str, Any]) -> None:
    before, expect, now = case["before"], case["expect"], 1_000.0
    engine = EngineRun(
        "r", "f", WireEvent("e", "x", Raw(b"null"), START), now,
        retries=before["retries"], backoff=msgspec.convert(before["backoff"], Backoff),
    )  # fmt: skip
    engine.position, engine.attempt, engine.generation = before["position"], before["attempt"], 1
    for wait in before["open_waits"]:
        engine.open_waits[wait["id"]] = EngineWait(wait["id"], wait["kind"], now + wait["due_in_seconds"], event="never")
    for retry in before["waiting_retries"]:
        engine.waiting_retries[retry["id"]] = EngineRetry(retry["id"], retry["attempt"], now + retry["in_seconds"])
    code = engine.end(1, case["known"], [_op(op) for op in case["ops"]])
    assert engine.state == expect["state"]
    assert code == expect.get("code")
    assert list(engine.memo) == expect["memo"]
    assert list(engine.open_waits) == expect["open_waits"]
    assert [
        {"id": retry.id, "attempt": retry.attempt, "in_seconds": retry.due_at - now} for retry in engine.waiting_retries.values()
    ] == expect["retries"]
    if "due_in_seconds" in expect:
        assert engine.due_at - now == expect["due_in_seconds"]
    if "attempt" in expect:
        assert engine.attempt == expect["attempt"]


def _op(op: dict[str, Any]) -> Op:
    return msgspec.json.decode(json.dumps(op), type=Op)


def test_ops_of_an_older_generation_change_nothing() -> None:
    engine = EngineRun("r", "f", WireEvent("e", "x", Raw(b"null"), START), 0.0, retries=3, backoff=Backoff())
    engine.next_invocation()
    engine.next_invocation()
    assert engine.checkpoint(1, 0, [_op({"op": "sleep", "id": "s", "seconds": 1})]).status == "stale"
    assert engine.end(1, 0, [_op({"op": "complete", "output": 1})]) is None
    assert engine.open_waits == {} and not engine.has_ended


def test_an_op_that_is_sent_again_changes_nothing() -> None:
    engine = EngineRun("r", "f", WireEvent("e", "x", Raw(b"null"), START), 0.0, retries=3, backoff=Backoff())
    engine.next_invocation()
    op = _op({"op": "send_events", "id": "n", "events": [{"name": "x", "data": 1}]})
    first, second = engine.checkpoint(1, 0, [op]), engine.checkpoint(1, 0, [op])
    assert first == second
    assert len(engine.sent) == 1
