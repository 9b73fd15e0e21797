"""Sync handlers: the same steps without await, in threads, on either loop; and the worker threads themselves."""

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from typing import Any

import pytest
from msgspec import Raw

from durable.current_step import current_step
from durable.errors import StepError
from durable.thread_runtime import WorkerThreads
from durable.wire import CheckpointEntry, EntryAnswer
from tests.sdk_python.invocation_bench import (
    LOOPS,
    Wire,
    error_of,
    function_of,
    invoke,
    new_engine,
    on_loop,
    output,
    until,
    words,
)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_sync_handler_parks_and_replays(loop: str) -> None:
    ran: list[str] = []
    unwound: list[str] = []

    def handler(event: Any, step: Any) -> Any:
        first = step.run("first", do, "first")
        try:
            step.sleep("pause", 60)
        except Exception:
            unwound.append("seen as an error")
        finally:
            unwound.append("finally")
        got = step.wait_for_event("hear", event="x", timeout=0)
        ids = step.send_event("tell", {"name": "y"})
        return [first, got, ids, step.run("async-body", do_async), step.is_replaying]

    def do(name: str) -> str:
        ran.append(f"{name} in {threading.current_thread().name}")
        return name

    async def do_async() -> str:
        return current_step().step_id

    async def main() -> None:
        wire = Wire(new_engine())
        assert words(await invoke(function_of(handler), wire)) == ["sleep"]
        assert unwound == ["finally"]
        wire.engine._commit("pause", "sleep", data=Raw(b"null"))
        wire.engine._commit("hear", "wait_for_event", data=Raw(b"null"))
        assert output(await invoke(function_of(handler), wire)) == ["first", None, ["evt-1"], "async-body", False]
        assert ran == ["first in durable-body"]

    on_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_sync_handler_that_swallows_the_parking_fails(loop: str) -> None:
    def handler(event: Any, step: Any) -> str:
        with contextlib.suppress(BaseException):
            step.sleep("s", 60)
        return "swallowed"

    async def main() -> None:
        assert error_of(await invoke(function_of(handler), Wire(new_engine())))["code"] == "park_swallowed"

    on_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_threads_of_a_sync_handler_run_steps_side_by_side(loop: str) -> None:
    def handler(event: Any, step: Any) -> Any:
        def branch(number: int) -> int:
            value = step.run(f"a{number}", lambda: number)
            return step.run(f"b{number}", lambda: value * 10)

        with ThreadPoolExecutor(8) as pool:
            futures = [pool.submit(copy_context().run, branch, number) for number in range(8)]
            return [future.result() for future in futures]

    async def main() -> None:
        wire = Wire(new_engine())
        expected = [number * 10 for number in range(8)]
        assert output(await invoke(function_of(handler), wire)) == expected
        assert output(await invoke(function_of(handler), wire)) == expected
        assert len(wire.engine.memo) == 16

    on_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_one_id_in_two_threads_is_ambiguous(loop: str) -> None:
    def handler(event: Any, step: Any) -> None:
        with ThreadPoolExecutor(2) as pool:
            for future in [pool.submit(step.wait_for_event, "same", event="x", timeout="1d") for _ in range(2)]:
                future.result()

    async def main() -> None:
        assert error_of(await invoke(function_of(handler), Wire(new_engine())))["code"] == "ambiguous_step_id"

    on_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_sync_handler_is_not_resumed_after_stale(loop: str) -> None:
    seen: list[str] = []

    def handler(event: Any, step: Any) -> None:
        try:
            step.run("a", lambda: 1)
            seen.append("resumed")
        except Exception:
            seen.append("error")

    async def main() -> None:
        wire = Wire(new_engine())

        async def stale(entry: CheckpointEntry) -> EntryAnswer:
            return EntryAnswer(entry.run_id, entry.generation, "stale")

        wire.before = stale
        assert await invoke(function_of(handler), wire) is None
        assert seen == []

    on_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_sync_handler_catches_a_final_step_error(loop: str) -> None:
    def handler(event: Any, step: Any) -> str:
        try:
            step.run("bad", fail, retries=0)
        except StepError as error:
            return error.name
        return "no error"

    def fail() -> None:
        raise LookupError("x")

    async def main() -> None:
        assert output(await invoke(function_of(handler), Wire(new_engine()))) == "LookupError"

    on_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_checkpoints_go_on_while_a_thread_of_the_handler_is_at_work(loop: str) -> None:
    """A slow thread holds back deliveries to the others, but not the commit of their results."""
    release = threading.Event()

    async def main() -> None:
        wire = Wire(new_engine())

        def handler(event: Any, step: Any) -> int:
            step.run("first", lambda: 1)
            with ThreadPoolExecutor(1) as pool:
                future = pool.submit(step.run, "beside", lambda: 2)
                release.wait()  # no wait for another thread of the handler, as far as one can see
                return int(future.result())

        async def let_go() -> None:
            await until(lambda: len(wire.entries) == 2)
            release.set()

        from tests.sdk_python.invocation_bench import side_by_side

        result: list[Any] = []

        async def run() -> None:
            result.append(output(await invoke(function_of(handler), wire)))

        await side_by_side(run, let_go)
        assert result == [2]

    on_loop(loop, main)


def test_context_variables_of_the_handler_are_seen_in_sync_bodies() -> None:
    tenant: ContextVar[str] = ContextVar("tenant")

    def handler(event: Any, step: Any) -> str:
        tenant.set("acme")
        return str(step.run("a", tenant.get))

    async def main() -> None:
        assert output(await invoke(function_of(handler), Wire(new_engine()))) == "acme"

    on_loop("asyncio", main)


# Worker threads.


def test_no_more_jobs_run_at_once_than_allowed_and_all_run() -> None:
    workers = WorkerThreads("test", at_once_max=3)
    lock, running, most, done = threading.Lock(), 0, 0, threading.Semaphore(0)

    def job() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.01)
        with lock:
            running -= 1

    for _ in range(20):
        workers.start(job, lambda outcome: done.release(), copy_context())
    for _ in range(20):
        assert done.acquire(timeout=10)
    assert most == 3


def test_a_stuck_job_that_is_given_up_makes_room_for_the_next() -> None:
    workers = WorkerThreads("test", at_once_max=1)
    release, heard, ran = threading.Event(), [], threading.Event()
    stuck = workers.start(release.wait, heard.append, copy_context())
    waiting = workers.start(lambda: heard.append("given up while waiting"), heard.append, copy_context())
    waiting.give_up()
    workers.start(ran.set, lambda outcome: None, copy_context())
    assert not ran.wait(0.05)
    stuck.give_up()
    assert ran.wait(10)
    release.set()
    assert heard == []


def test_idle_threads_are_used_again() -> None:
    workers = WorkerThreads("test")
    idents: set[int] = set()
    for _ in range(50):
        done = threading.Event()
        workers.start(lambda: idents.add(threading.get_ident()), lambda outcome, done=done: done.set(), copy_context())  # type: ignore[misc]
        assert done.wait(10)
        give_up_at = time.monotonic() + 10
        while not workers._idle and time.monotonic() < give_up_at:
            time.sleep(0.001)
    assert len(idents) == 1


def test_a_job_that_raises_is_heard_with_its_error() -> None:
    workers = WorkerThreads("test")
    outcomes: list[Any] = []
    done = threading.Event()

    def hear(outcome: Any) -> None:
        outcomes.append(outcome)
        done.set()

    def exits() -> None:
        raise SystemExit(3)

    workers.start(exits, hear, copy_context())
    assert done.wait(10)
    assert isinstance(outcomes[0].error, SystemExit)
