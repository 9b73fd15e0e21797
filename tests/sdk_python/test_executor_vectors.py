"""The vectors of replays and step ids, run with real handlers on asyncio, Trio and in threads."""

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from msgspec import Raw

from durable import memo
from durable.current_step import current_step
from durable.errors import AmbiguousStepId, NonRetriableError, StepUsageError
from durable.memo import StepIds
from durable.run_invocation import run_invocation
from durable.runtime import current_runtime
from durable.step_id import check_step_id
from durable.wire import (
    CheckpointEntry,
    Ended,
    EntryAnswer,
    Invocation,
    MemoEntry,
    OpenWait,
    Retry,
    WireEvent,
)
from durable.wire_codec import encode
from tests.sdk_python.invocation_bench import LOOPS, RUN_ID, forever, function_of, is_trio, on_loop, until_blocked

VECTORS = Path(__file__).parents[2] / "protocol" / "vectors"
REPLAYS = json.loads((VECTORS / "replays.json").read_text())["cases"]
STEP_IDS = json.loads((VECTORS / "step_ids.json").read_text())
RESULT_BYTES = b'{"reported":true}'


@pytest.mark.parametrize("case", REPLAYS, ids=lambda case: case["name"])
@pytest.mark.parametrize("loop", LOOPS)
def test_an_async_handler_plans_what_the_vector_says(loop: str, case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    record = Record(case, monkeypatch)

    async def body() -> None:
        record.starts.append(current_step().step_id)
        await forever()

    async def handler(event: Any, step: Any) -> Any:
        return await Interpreter(step, body).run(case["handler"])

    on_loop(loop, lambda: record.invoke(handler))
    if loop == "trio":  # which runs the tasks of a turn forwards or backwards, by chance
        record.starts.sort(key=case["expect"]["starts"].index)
    record.check()


@pytest.mark.parametrize(
    "case", [case for case in REPLAYS if "race" not in json.dumps(case["handler"])], ids=lambda case: case["name"]
)
def test_a_sync_handler_plans_what_the_vector_says(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    record = Record(case, monkeypatch)

    async def body() -> None:
        record.starts.append(current_step().step_id)
        await forever()

    def handler(event: Any, step: Any) -> Any:
        return run_sync(case["handler"], step, body)

    on_loop("asyncio", lambda: record.invoke(handler, settle_seconds=0.03))
    record.check(is_order_certain="parallel" not in json.dumps(case["handler"]))


class Record:
    """What an invocation did, and what the vector wants."""

    def __init__(self, case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
        self.case = case
        self.starts: list[str] = []
        self.delivered: list[str] = []
        self.reports: list[Any] = []
        self.ended: Ended | None = None
        names = {entry["position"]: entry["id"] for entry in case["memo"]}
        note_delivered = memo.Memo.note_delivered

        def noting(self_: memo.Memo, position: int) -> None:
            self.delivered.append(names[position])
            note_delivered(self_, position)

        monkeypatch.setattr(memo.Memo, "note_delivered", noting)

    def submit_soon(self, entry: CheckpointEntry, deadline: float, on_answer: Callable[[EntryAnswer], None]) -> None:
        self.reports += entry.ops
        on_answer(EntryAnswer(entry.run_id, entry.generation, "ok", lease_seconds=30))

    async def invoke(self, handler: Callable[..., Any], settle_seconds: float = 0) -> None:
        case = self.case
        invocation = Invocation(
            RUN_ID, 1, 1, "f", WireEvent("e", "test", Raw(b"null"), datetime.now(UTC)),
            steps=[msgspec.convert(_raw(entry), MemoEntry) for entry in case["memo"]],
            retries=msgspec.convert(case["retries"], list[Retry]),
            waiting=msgspec.convert(case["waiting"], list[OpenWait]),
        )  # fmt: skip

        async def run() -> None:
            self.ended = await run_invocation(
                function_of(handler), invocation, self, received_at=time.monotonic(), runtime=current_runtime()
            )

        if is_trio():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run)
                await until_blocked()
                nursery.cancel_scope.cancel()
        else:
            task = asyncio.create_task(run())
            # A thread is not seen by the loop: wait until the sync handler has gone as far as it should, and a little more.
            give_up_at = time.monotonic() + 10
            while settle_seconds and not task.done() and not self.has_all() and time.monotonic() < give_up_at:
                await asyncio.sleep(0.005)
            await asyncio.sleep(settle_seconds)
            await until_blocked()
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def has_all(self) -> bool:
        expect = self.case["expect"]
        found = (self.delivered, self.starts, self.reports)
        wanted = (expect["delivered"], expect["starts"], expect["reports"])
        return expect["end"] is None and bool(expect["starts"]) and all(map(lambda a, b: len(a) >= len(b), found, wanted))

    def check(self, is_order_certain: bool = True) -> None:
        expect = self.case["expect"]
        ops = [*self.reports, *(self.ended.ops if self.ended is not None else [])]
        reports = [json.loads(encode(op)) for op in ops]
        ends = [op for op in reports if op["op"] in ("complete", "fail")]
        order: Callable[[list[Any]], list[Any]] = list if is_order_certain else lambda words: sorted(words, key=str)
        assert self.delivered == expect["delivered"]
        assert order(self.starts) == order(expect["starts"])
        assert order([_without_defaults(op) for op in reports if op not in ends]) == order(expect["reports"])
        if expect["end"] is None:
            assert not ends
        else:
            (end,) = ends
            self._check_end(end, expect["end"])

    def _check_end(self, end: dict[str, Any], expected: dict[str, Any]) -> None:
        for name, value in expected.items():
            found = end["error"]["name"] if name == "error_name" else end["error"]["code"] if name == "code" else end[name]
            assert found == value, name


class Interpreter:
    """Makes a handler out of the actions of a vector."""

    def __init__(self, step: Any, body: Callable[[], Awaitable[Any]]) -> None:
        self.step = step
        self.body = body
        self.results: dict[str, Any] = {}

    async def run(self, actions: list[dict[str, Any]]) -> Any:
        for action in actions:
            is_over, value = await self.act(action)
            if is_over:
                return value
        return None

    async def act(self, action: dict[str, Any]) -> tuple[bool, Any]:
        step = self.step
        match action:
            case {"step": step_id}:
                self.results[step_id] = await step.run(step_id, self.body)
            case {"sleep": step_id, "seconds": seconds}:
                await step.sleep(step_id, seconds)
            case {"wait": step_id, "event": event, "timeout_seconds": timeout}:
                got = await step.wait_for_event(step_id, event=event, timeout=timeout)
                self.results[step_id] = None if got is None else {"name": got.name, "data": got.data}
            case {"send": step_id, "events": events}:
                await step.send_event(step_id, events)
            case {"parallel": branches}:
                if is_trio():
                    async with trio.open_nursery() as nursery:
                        await start_in_order(nursery, self.run, branches)
                else:
                    await asyncio.gather(*(self.run(branch) for branch in branches))
            case {"race": branches}:
                await self.race(branches)
            case {"repeat": times, "do": inner}:
                for _ in range(times):
                    await self.run(inner)
            case {"try": inner, "catch": instead}:
                try:
                    await self.run(inner)
                except Exception:
                    await self.run(instead)
            case {"raise": name}:
                parent = Exception if action.get("retriable", True) else NonRetriableError
                raise type(name, (parent,), {})()
            case {"return": {"value": value}}:
                return True, value
            case {"return": {"result_of": step_id}}:
                return True, self.results[step_id]
            case _:
                raise AssertionError(f"unknown action {action}")
        return False, None

    async def race(self, branches: list[list[dict[str, Any]]]) -> None:
        if is_trio():
            async with trio.open_nursery() as nursery:

                async def compete(branch: list[dict[str, Any]]) -> None:
                    await self.run(branch)
                    nursery.cancel_scope.cancel()

                await start_in_order(nursery, compete, branches)
        else:
            tasks = [asyncio.create_task(self.run(branch)) for branch in branches]
            _, losers = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in losers:
                task.cancel()
            await asyncio.wait(tasks)


async def start_in_order(nursery: trio.Nursery, run: Callable[[Any], Awaitable[None]], branches: list[Any]) -> None:
    # start_soon starts tasks in random order; the vectors mean the order of writing.
    async def start(branch: Any, *, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        await run(branch)

    for branch in branches:
        await nursery.start(start, branch)


def run_sync(actions: list[dict[str, Any]], step: Any, body: Callable[[], Any]) -> Any:
    """The same for sync handlers, whose branches are threads."""
    results: dict[str, Any] = {}

    def run(actions: list[dict[str, Any]]) -> Any:
        for action in actions:
            match action:
                case {"step": step_id}:
                    results[step_id] = step.run(step_id, body)
                case {"sleep": step_id, "seconds": seconds}:
                    step.sleep(step_id, seconds)
                case {"wait": step_id, "event": event, "timeout_seconds": timeout}:
                    got = step.wait_for_event(step_id, event=event, timeout=timeout)
                    results[step_id] = None if got is None else {"name": got.name, "data": got.data}
                case {"send": step_id, "events": events}:
                    step.send_event(step_id, events)
                case {"parallel": branches}:
                    with ThreadPoolExecutor() as pool:
                        for future in [pool.submit(copy_context().run, run, branch) for branch in branches]:
                            future.result()
                case {"repeat": times, "do": inner}:
                    for _ in range(times):
                        run(inner)
                case {"try": inner, "catch": instead}:
                    try:
                        run(inner)
                    except Exception:
                        run(instead)
                case {"raise": name}:
                    parent = Exception if action.get("retriable", True) else NonRetriableError
                    raise type(name, (parent,), {})()
                case {"return": {"value": value}}:
                    return value
                case {"return": {"result_of": step_id}}:
                    return results[step_id]
        return None

    return run(actions)


def _raw(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: Raw(json.dumps(value).encode()) if name in ("data", "error") else value for name, value in entry.items()}


def _without_defaults(op: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in op.items() if value is not None and not (name == "lookback" and value is True)}


# Step ids.


@pytest.mark.parametrize("case", STEP_IDS["calls"], ids=lambda case: ",".join(case["calls"])[:40])
def test_repeats_of_ids_are_named_as_the_vector_says(case: dict[str, Any]) -> None:
    ids = StepIds()
    names = []
    for call in case["calls"]:
        check_step_id(call)
        names.append(ids.take(call))
        ids.close(call)
    assert names == case["names"]


@pytest.mark.parametrize("case", STEP_IDS["concurrent"], ids=lambda case: case["name"])
def test_open_ids_are_ambiguous_as_the_vector_says(case: dict[str, Any]) -> None:
    ids = StepIds()
    names: list[str] = []
    error = None
    for what, call in case["events"]:
        if what == "over":
            ids.close(call)
        elif ids.is_open(call):
            error = AmbiguousStepId.code
            break
        else:
            names.append(ids.take(call))
    assert names == case["names"]
    assert error == case["error"]


@pytest.mark.parametrize("step_id", [*STEP_IDS["refuse"], "x" * 257, "a\x7f", 7])
def test_bad_step_ids_are_refused_with_a_sentence(step_id: Any) -> None:
    with pytest.raises(StepUsageError):
        check_step_id(step_id)


@pytest.mark.parametrize("step_id", ["a", "x" * 256, "a#b", "é#é", "#", "a #1 b"])
def test_good_step_ids_pass(step_id: str) -> None:
    check_step_id(step_id)
