"""What the step tools refuse and how they read durations, instants and events; async and sync alike."""

import functools
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from durable.errors import StepUsageError
from durable.wire import EventIn, SendEventsOp, SleepOp, WaitForEventOp
from tests.sdk_python.invocation_bench import LOOPS, Wire, error_of, function_of, invoke, new_engine, on_loop, output

MISUSES: dict[str, tuple[Any, str]] = {
    "a coroutine instead of a function": (lambda step: step.run("a", _never()), "step.run(id, fetch, 7)"),
    "no function": (lambda step: step.run("a", 7), "int"),
    "too many retries": (lambda step: step.run("a", len, "x", retries=101), "0 to 100"),
    "a timeout above the function's": (lambda step: step.run("a", len, "x", timeout="16m"), "step_timeout"),
    "a timeout of nothing": (lambda step: step.run("a", len, "x", timeout=0), "above 0"),
    "an id that counts": (lambda step: step.run("a#2", len, "x"), "counts repeats"),
    "an empty id": (lambda step: step.run("", len, "x"), "1 to 256"),
    "no duration": (lambda step: step.sleep("s", "soon"), "'soon'"),
    "a negative duration": (lambda step: step.sleep("s", -1), "0 to"),
    "an instant without a zone": (lambda step: step.sleep_until("s", datetime(2026, 1, 1)), "time zone"),
    "an instant that is none": (lambda step: step.sleep_until("s", "tomorrow"), "2026-01-31T09:00:00Z"),
    "too many paths": (
        lambda step: step.wait_for_event("w", event="x", match={f"p{n}": 1 for n in range(9)}, timeout=1), "1 to 8",
    ),
    "no events": (lambda step: step.send_event("n", []), "at least one"),
    "an event without a name": (lambda step: step.send_event("n", {"data": 1}), '"name"'),
    "an event with a word too many": (lambda step: step.send_event("n", {"name": "x", "delay": 1}), '"name"'),
    "an event that is no JSON": (lambda step: step.send_event("n", {"name": "x", "data": object()}), "event 0"),
}  # fmt: skip


async def _never() -> None: ...


@pytest.mark.filterwarnings("ignore:coroutine '_never' was never awaited")
@pytest.mark.parametrize("kind", ["async", "sync"])
@pytest.mark.parametrize("misuse", MISUSES.values(), ids=MISUSES)
def test_misuse_is_refused_at_the_step_with_the_way_to_mend_it(misuse: tuple[Any, str], kind: str) -> None:
    call, hint = misuse
    caught: list[Exception] = []

    async def handler(event: Any, step: Any) -> str:
        try:
            await call(step)
        except Exception as error:
            caught.append(error)
        return "caught"

    def sync_handler(event: Any, step: Any) -> str:
        try:
            call(step)
        except Exception as error:
            caught.append(error)
        return "caught"

    async def main() -> None:
        wire = Wire(new_engine())
        assert output(await invoke(function_of(handler if kind == "async" else sync_handler), wire)) == "caught"
        assert wire.entries == []

    on_loop("asyncio", main)
    assert hint in str(caught[0])
    assert isinstance(caught[0], StepUsageError | ValueError | TypeError)


@pytest.mark.parametrize("loop", LOOPS)
def test_waits_travel_as_the_wire_wants_them(loop: str) -> None:
    async def handler(event: Any, step: Any) -> None:
        instant = datetime(2030, 1, 1, 2, tzinfo=UTC)
        await step.sleep_until("until", instant.astimezone())

    async def hearing(event: Any, step: Any) -> None:
        await step.wait_for_event("w", event="x", match={"order.id": 7}, if_="event.data.ok", timeout="1h30m")

    async def sleeping(event: Any, step: Any) -> None:
        await step.sleep("s", timedelta(minutes=2))

    async def main() -> None:
        ops = []
        for each in (handler, hearing, sleeping):
            ended = await invoke(function_of(each), Wire(new_engine()))
            assert ended is not None
            ops += ended.ops
        assert ops == [
            SleepOp("until", until=datetime(2030, 1, 1, 2, tzinfo=UTC)),
            WaitForEventOp("w", "x", 5400.0, match={"order.id": 7}, if_="event.data.ok"),
            SleepOp("s", seconds=120.0),
        ]

    on_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_one_event_and_many_events_can_be_sent(loop: str) -> None:
    async def handler(event: Any, step: Any) -> Any:
        return [await step.send_event("one", {"name": "a"}), await step.send_event("many", ({"name": "b", "id": "b1"},))]

    async def main() -> None:
        wire = Wire(new_engine())
        assert output(await invoke(function_of(handler), wire)) == [["evt-1"], ["b1"]]
        first, second = wire.ops
        assert isinstance(first, SendEventsOp) and isinstance(second, SendEventsOp)
        assert [event.name for event in first.events] == ["a"]
        assert second.events == [EventIn("b", second.events[0].data, "b1")]
        assert bytes(second.events[0].data) == b"null"

    on_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_bodies_may_be_functions_partials_lambdas_methods_and_objects(loop: str) -> None:
    class Counter:
        async def __call__(self, by: int) -> int:
            return by + 1

        def times(self, by: int, factor: int = 2) -> int:
            return by * factor

    async def add(a: int, b: int) -> int:
        return a + b

    async def handler(event: Any, step: Any) -> Any:
        return [
            await step.run("function", add, 1, b=2),
            await step.run("partial", functools.partial(add, 1), 3),
            await step.run("lambda that gives a coroutine", lambda: add(2, 3)),
            await step.run("object", Counter(), 5),
            await step.run("method", Counter().times, 5, factor=3),
        ]

    async def main() -> None:
        assert output(await invoke(function_of(handler), Wire(new_engine()))) == [3, 4, 5, 6, 15]

    on_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_step_called_after_the_end_is_told_so(loop: str) -> None:
    kept: list[Any] = []

    async def handler(event: Any, step: Any) -> None:
        kept.append(step)

    async def main() -> None:
        output(await invoke(function_of(handler), Wire(new_engine())))
        with pytest.raises(StepUsageError, match="ended"):
            await kept[0].run("late", len, "x")

    on_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_the_handler_gets_the_event_and_the_facts_of_its_run(loop: str) -> None:
    async def handler(event: Any, step: Any) -> Any:
        return [event.id, event.name, event.data, event.received_at.isoformat(), step.run_id, step.attempt]

    async def main() -> None:
        wire = Wire(new_engine(data={"id": 1}))
        expected = ["evt-0", "test", {"id": 1}, "2026-01-31T00:00:00+00:00", wire.engine.run_id, 1]
        assert output(await invoke(function_of(handler), wire)) == expected

    on_loop(loop, main)


def test_an_error_of_any_size_and_content_is_shortened_to_what_the_wire_takes() -> None:
    class Awful(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    async def handler(event: Any, step: Any) -> None:
        raise ExceptionGroup("many", [ValueError("\0\ud800é" * 100_000), Awful()])

    async def lone(event: Any, step: Any) -> None:
        raise Awful()

    async def main() -> None:
        ended = await invoke(function_of(handler), Wire(new_engine()))
        assert ended is not None
        assert len(bytes(ended.ops[0].error)) < 64 << 10  # type: ignore[union-attr]
        assert error_of(ended)["name"] == "ExceptionGroup"
        error = error_of(await invoke(function_of(lone), Wire(new_engine())))
        assert error["name"] == "Awful" and "RuntimeError" in error["message"]

    on_loop("asyncio", main)
