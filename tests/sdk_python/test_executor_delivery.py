"""Results reach the handler in commit order, live as on replay, and look the same the first time as every later time."""

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from durable import memo
from durable.current_step import CurrentStep, current_step
from durable.replay_log import is_replaying
from durable.wire import CheckpointEntry, EntryAnswer
from tests.sdk_python.invocation_bench import (
    LOOPS,
    Wire,
    forever,
    function_of,
    invoke,
    is_trio,
    new_engine,
    on_loop,
    output,
    pause,
    side_by_side,
    until,
    words,
)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_sequential_handler_runs_each_body_once_over_any_number_of_invocations(loop: str) -> None:
    ran: list[str] = []

    async def handler(event: Any, step: Any) -> Any:
        first = await step.run("first", do, "first")
        await step.sleep("pause", 60)
        second = await step.run("second", do, "second")
        return [first, second]

    async def do(name: str) -> str:
        ran.append(name)
        return name.upper()

    async def main() -> None:
        wire = Wire(new_engine())
        ended = await invoke(function_of(handler), wire)
        assert words(ended) == ["step", "sleep"], "both travel with the end"
        assert ended is not None and ended.known == 0
        wire.engine.end(ended.generation, ended.known, ended.ops)
        wire.engine.now += 60
        wire.engine.resolve_due_waits()
        assert output(await invoke(function_of(handler), wire)) == ["FIRST", "SECOND"]
        assert ran == ["first", "second"]
        assert wire.entries == []
        assert [op.seen for op in (*ended.ops[:1], *wire.ops)] == [0, 2]  # type: ignore[union-attr]

    on_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_result_looks_the_first_time_as_every_later_time(loop: str) -> None:
    async def handler(event: Any, step: Any) -> Any:
        got = await step.run("a", lambda: {"pair": (1, 2.0), "text": "é"})
        assert type(got["pair"]) is list
        got["pair"].append(3)  # what the handler does with its copy changes nothing
        return [got, await step.run("b", lambda: None)]

    async def main() -> None:
        wire = Wire(new_engine())
        first = output(await invoke(function_of(handler), wire))
        again = output(await invoke(function_of(handler), wire))
        assert first == again == [{"pair": [1, 2.0, 3], "text": "é"}, None]

    on_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_with_two_steps_open_nothing_is_delivered_before_its_checkpoint_is_answered(loop: str) -> None:
    async def main() -> None:
        wire = Wire(new_engine())
        seen: list[str] = []

        async def handler(event: Any, step: Any) -> None:
            async def branch(name: str) -> None:
                await step.run(name, lambda: 1)
                seen.append(name)

            await side_by_side(lambda: branch("a"), lambda: branch("b"))

        async def answer_late(entry: CheckpointEntry) -> EntryAnswer | None:
            for _ in range(50):
                await pause()
            assert not {op.id for op in entry.ops} & set(seen)  # type: ignore[union-attr]
            return None

        wire.before = answer_late
        output(await invoke(function_of(handler), wire))
        assert sorted(seen) == ["a", "b"]
        assert wire.entries and wire.entries[0].ops

    on_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_500_steps_side_by_side_share_checkpoints_and_come_in_commit_order(loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    delivered = _note_deliveries(monkeypatch)

    async def handler(event: Any, step: Any) -> int:
        results: list[int] = []

        async def branch(number: int) -> None:
            results.append(await step.run(f"s{number}", square, number))

        await side_by_side(*[lambda number=number: branch(number) for number in range(500)])  # type: ignore[misc]
        return sum(results)

    async def square(number: int) -> int:
        await pause()
        return number * number

    async def main() -> None:
        wire = Wire(new_engine())
        total = sum(number * number for number in range(500))
        assert output(await invoke(function_of(handler), wire)) == total
        assert delivered == list(range(1, 501))
        assert len(wire.entries) < 50, "results that gather travel together"
        delivered.clear()
        assert output(await invoke(function_of(handler), wire)) == total
        assert delivered == list(range(1, 501))

    on_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_body_starts_only_after_all_that_was_asked_for_is_delivered(loop: str) -> None:
    order: list[str] = []

    async def main() -> None:
        wire = Wire(new_engine())

        async def handler(event: Any, step: Any) -> None:
            async def branch(name: str) -> None:
                await step.run(name, forever)
                order.append(f"got {name}")
                await step.run(f"{name}-then", lambda: order.append(f"ran {name}-then"))

            await side_by_side(lambda: branch("a"), lambda: branch("b"))

        for name in ("a", "b"):
            wire.engine._commit(name, "step", data=Raw(b"null"))
        output(await invoke(function_of(handler), wire))
        assert {*order[:2]} == {"got a", "got b"}
        assert {*order[2:]} == {"ran a-then", "ran b-then"}

    on_loop(loop, main)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32))
@pytest.mark.parametrize("loop", LOOPS)
def test_a_handler_takes_the_same_turns_from_each_prefix_of_its_memo(loop: str, seed: int) -> None:
    """Branches of random steps write down every turn. Each replay must write the same."""
    import random

    dice = random.Random(seed)
    plan = [[dice.choice(["step", "step", "twice"]) for _ in range(dice.randint(1, 4))] for _ in range(dice.randint(2, 4))]
    pauses = {(branch, index): dice.randint(0, 5) for branch in range(4) for index in range(8)}

    async def main() -> None:
        turns: list[str] = []

        async def handler(event: Any, step: Any) -> list[str]:
            async def branch(number: int) -> None:
                for index, what in enumerate(plan[number]):
                    for _ in range(2 if what == "twice" else 1):
                        # An id that all branches share shows a changed order at once.
                        turns.append(f"{number}.{index}")
                        await step.run(f"{number}.{index}", wait_turns, pauses[number, index])
                        await sum_up(step)

            async def sum_up(step: Any) -> None:
                turns.append("|")

            turns.clear()
            await in_order([lambda number=number: branch(number) for number in range(len(plan))])  # type: ignore[misc]
            return list(turns)

        async def wait_turns(count: int) -> None:
            for _ in range(count):
                await pause()

        wire = Wire(new_engine())
        first = output(await invoke(function_of(handler), wire))
        entries = dict(wire.engine.memo)
        for length in range(len(entries) + 1):
            engine = new_engine()
            engine.memo = dict(list(entries.items())[:length])
            engine.position = length
            turns_of_memo = first[: _turns_before_body(first, length)]
            again = output(await invoke(function_of(handler), Wire(engine)))
            assert again[: len(turns_of_memo)] == turns_of_memo, (seed, length)
            if length == len(entries):
                assert again == first, seed

    on_loop(loop, main)


def _turns_before_body(turns: list[str], length: int) -> int:
    """How many of the turns were taken when `length` results had been delivered and no more."""
    delivered = 0
    for index, turn in enumerate(turns):
        delivered += turn == "|"
        if delivered > length:
            return index
    return len(turns)


async def in_order(branches: list[Callable[[], Any]]) -> None:
    """Branches that start in the order of writing, on Trio too, which else draws lots."""
    if not is_trio():
        await asyncio.gather(*(branch() for branch in branches))
        return
    async with trio.open_nursery() as nursery:

        async def start(branch: Callable[[], Any], *, task_status: trio.TaskStatus[None]) -> None:
            task_status.started()
            await branch()

        for branch in branches:
            await nursery.start(start, branch)


@pytest.mark.parametrize("loop", LOOPS)
def test_nested_groups_replay_in_the_turns_of_the_first_time(loop: str) -> None:
    """A step after three levels of groups must be called before the next result comes."""
    order: list[str] = []

    async def handler(event: Any, step: Any) -> None:
        async def deep(levels: int) -> None:
            if levels == 0:
                await step.run("inner", lambda: None)
            else:
                await in_order([lambda: deep(levels - 1)])

        async def left() -> None:
            await deep(3)
            order.append("left")
            await step.run("after-left", lambda: None)

        async def right() -> None:
            await step.run("other", lambda: None)
            order.append("right")

        await in_order([left, right])

    async def main() -> None:
        wire = Wire(new_engine())
        for position, step_id in enumerate(["inner", "after-left", "other"], 1):
            wire.engine._commit(step_id, "step", data=Raw(b"null"))
            assert wire.engine.position == position
        output(await invoke(function_of(handler), wire))
        assert order == ["left", "right"]

    on_loop(loop, main)


def test_gathers_of_gathers_without_tasks_between_are_waited_for() -> None:
    order: list[str] = []

    async def handler(event: Any, step: Any) -> None:
        async def inner() -> None:
            await step.run("inner", lambda: None)

        async def left() -> None:
            await asyncio.gather(asyncio.gather(asyncio.gather(inner())))
            order.append("left")

        async def right() -> None:
            await step.run("other", lambda: None)
            order.append("right")

        await asyncio.gather(left(), right())

    async def main() -> None:
        wire = Wire(new_engine())
        for step_id in ("inner", "other"):
            wire.engine._commit(step_id, "step", data=Raw(b"null"))
        output(await invoke(function_of(handler), wire))
        assert order == ["left", "right"]

    on_loop("asyncio", main)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_body_knows_its_step_and_keeps_its_key_over_tries(loop: str) -> None:
    found: list[CurrentStep] = []

    async def handler(event: Any, step: Any) -> None:
        assert step.run_id and step.attempt == 1
        await step.run("charge", note)
        await step.run("charge", note_in_thread)

    async def note() -> None:
        found.append(current_step())

    def note_in_thread() -> None:
        found.append(current_step())

    async def main() -> None:
        wire = Wire(new_engine())
        output(await invoke(function_of(handler), wire))
        assert [(step.step_id, step.attempt, step.generation) for step in found] == [("charge", 1, 1), ("charge#2", 1, 1)]
        assert [step.idempotency_key for step in found] == [f"{wire.engine.run_id}/charge", f"{wire.engine.run_id}/charge#2"]

    on_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_replaying_is_true_until_the_last_remembered_result_is_delivered(loop: str) -> None:
    turns: list[tuple[str, bool, bool]] = []

    async def handler(event: Any, step: Any) -> None:
        def note(where: str) -> None:
            turns.append((where, step.is_replaying, bool(is_replaying.get())))

        note("top")
        await step.run("a", lambda: 1)
        note("after a")

        async def child() -> None:
            await step.run("b", lambda: 1)

        await side_by_side(child)
        note("after b")
        await step.run("c", lambda: 1)

    async def main() -> None:
        wire = Wire(new_engine())
        output(await invoke(function_of(handler), wire))
        assert turns == [("top", False, False), ("after a", False, False), ("after b", False, False)]
        turns.clear()
        wire.engine.memo.pop("c")
        output(await invoke(function_of(handler), wire))
        assert turns == [("top", True, True), ("after a", True, True), ("after b", False, False)]

    on_loop(loop, main)


def test_ten_thousand_steps_cost_as_much_each_at_the_end_as_at_the_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in calls of Python functions, which a busy machine does not change."""
    import sys

    marks: list[int] = []
    calls = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        if event in ("call", "c_call"):
            calls += 1

    async def handler(event: Any, step: Any) -> int:
        for number in range(10_000):
            if number % 1_000 == 0:
                marks.append(calls)
            await step.run(f"s{number}", one)
        marks.append(calls)
        return 1

    async def one() -> int:
        return 1

    async def main() -> None:
        wire = Wire(new_engine())
        wire.engine = FastEngine()  # type: ignore[assignment]
        sys.setprofile(count)
        try:
            first = await invoke(function_of(handler), wire)
            replayed = await invoke(function_of(handler), wire)
        finally:
            sys.setprofile(None)
        assert output(first) == output(replayed) == 1

    on_loop("asyncio", main)
    costs = [after - before for before, after in itertools.pairwise(marks)]
    live, replay = costs[:10], costs[11:]
    assert live[-1] / live[0] < 1.1, live
    assert replay[-1] / replay[0] < 1.1, replay


class FastEngine:
    """An engine that answers each step at a constant cost; EngineRun sorts its memo for each answer."""

    def __init__(self) -> None:
        self.inner = new_engine()

    def next_invocation(self) -> Any:
        return self.inner.next_invocation()

    def checkpoint(self, generation: int, known: int, ops: Any) -> EntryAnswer:
        (op,) = ops
        self.inner._commit(op.id, "step", data=op.data)
        entry = self.inner.memo[op.id]
        return EntryAnswer(
            self.inner.run_id, generation, "ok", lease_seconds=30, resolved=[memo.MemoEntry(entry.id, "step", entry.position)]
        )


def _note_deliveries(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    delivered: list[int] = []
    note_delivered = memo.Memo.note_delivered

    def noting(self: memo.Memo, position: int) -> None:
        delivered.append(position)
        note_delivered(self, position)

    monkeypatch.setattr(memo.Memo, "note_delivered", noting)
    return delivered


@pytest.mark.parametrize("loop", LOOPS)
def test_a_wait_that_resolves_beside_a_body_is_delivered_while_the_body_runs(loop: str) -> None:
    async def main() -> None:
        wire = Wire(new_engine())
        got: list[str] = []

        async def handler(event: Any, step: Any) -> None:
            async def sleeper() -> None:
                await step.sleep("short", "50ms")
                got.append("slept")

            async def worker() -> None:
                await step.run("long", long)
                got.append("worked")

            await side_by_side(sleeper, worker)

        async def long() -> None:
            await until(lambda: got == ["slept"])

        async def let_time_pass(entry: CheckpointEntry) -> EntryAnswer | None:
            if not entry.ops:
                wire.engine.now += 60
                wire.engine.resolve_due_waits()
            return None

        wire.before = let_time_pass
        output(await invoke(function_of(handler), wire))
        assert got == ["slept", "worked"]

    on_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_sent_events_give_their_ids_in_the_same_invocation(loop: str) -> None:
    async def handler(event: Any, step: Any) -> Any:
        ids = await step.send_event("tell", [{"name": "a", "data": 1}, {"name": "b", "id": "b-1"}])
        got = await step.wait_for_event("hear", event="a", timeout="1h")
        return [ids, got.name, got.data, got.received_at.isoformat()]

    async def main() -> None:
        wire = Wire(new_engine())
        ended = await invoke(function_of(handler), wire)
        assert words(ended) == ["wait_for_event"]
        assert ended is not None
        wire.engine.end(ended.generation, ended.known, ended.ops)
        assert output(await invoke(function_of(handler), wire)) == [["evt-1", "b-1"], "a", 1, "1970-01-12T13:46:40+00:00"]
        assert [event["name"] for event in wire.engine.sent] == ["a", "b"]

    on_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_an_invocation_that_is_cancelled_from_outside_records_nothing_more(loop: str) -> None:
    after: list[str] = []

    async def handler(event: Any, step: Any) -> None:
        try:
            await step.run("a", forever)
        finally:
            after.append("unwound")
            await step.run("b", lambda: after.append("b ran"))

    async def main() -> None:
        wire = Wire(new_engine())
        if is_trio():
            with trio.move_on_after(0.05):
                await invoke(function_of(handler), wire)
        else:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await invoke(function_of(handler), wire)
        assert after == ["unwound"]
        assert wire.entries == []

    on_loop(loop, main)
