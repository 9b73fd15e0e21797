"""The long poll that keeps leases: from a thread, so that a blocked loop loses none, and only for invocations that last."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import durable
from durable import alive
from tests.sdk_python.app_servers import ASGI_SERVERS, until, uvicorn_server, wsgi_server
from tests.sdk_python.fake_engine import FakeEngine, environment_of
from tests.sdk_python.fake_run import FakeRun


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeEngine]:
    monkeypatch.setattr(alive, "LINGER_SECONDS", 0.3)
    monkeypatch.setattr(alive, "BETWEEN_SECONDS_MIN", 0.05)
    with environment_of(FakeEngine(lease_seconds=3.0), monkeypatch) as engine:
        yield engine
    until(lambda: not any(thread.name == "durable-alive" for thread in threading.enumerate()))


class Gate:
    """Bodies that wait until the test lets them go. `block` holds the whole event loop."""

    def __init__(self) -> None:
        self.entered: set[str] = set()
        self.release = threading.Event()
        self.app = durable.App("shop")

        @self.app.function(trigger=durable.Event("x"))
        async def slow(event: durable.ReceivedEvent, step: durable.Step) -> Any:
            def body() -> str:
                return self.wait(event.data)

            return await step.run("slow", body, timeout="20s")

        @self.app.function(trigger=durable.Event("x"))
        async def block(event: durable.ReceivedEvent, step: durable.Step) -> Any:
            async def body() -> str:
                return self.wait(event.data)

            return await step.run("block", body, timeout="20s")

        @self.app.function(trigger=durable.Event("x"))
        def sync(event: durable.ReceivedEvent, step: durable.SyncStep) -> Any:
            return step.run("slow", lambda: self.wait(event.data), timeout="20s")

    def wait(self, word: str) -> str:
        self.entered.add(word)
        assert self.release.wait(20)
        return word


def create(engine: FakeEngine, function: str, word: str) -> FakeRun:
    return engine.create_run(function, {"id": word, "name": "x", "data": word})


def polled(engine: FakeEngine, run: FakeRun) -> int:
    return sum(run.id in [each.run_id for each in poll.runs] for poll in engine.polls)


@pytest.mark.parametrize("server", ASGI_SERVERS.values(), ids=ASGI_SERVERS)
def test_a_blocked_loop_keeps_its_leases(server: Callable[[Any], Any], engine: FakeEngine) -> None:
    gate = Gate()
    with server(gate.app.asgi()) as engine.app_url:
        run = create(engine, "block", "a")
        # More polls than one, while the loop does nothing else: the answer to the first needed no loop.
        engine.wait_until(lambda: polled(engine, run) >= 2)
        assert [0 < poll.runs[0].open_seconds <= 20 for poll in engine.polls] == [True] * len(engine.polls)
        assert all(0 < poll.wait_seconds <= 1.5 for poll in engine.polls)
        assert len({poll.process for poll in engine.polls}) == 1
        gate.release.set()
        assert engine.wait_for_end(run).output == "a"


def test_sync_handlers_under_wsgi_keep_their_leases(engine: FakeEngine) -> None:
    gate = Gate()
    wsgi = gate.app.wsgi()
    with wsgi_server(wsgi) as engine.app_url:
        run = create(engine, "sync", "a")
        engine.wait_until(lambda: polled(engine, run) >= 2)
        gate.release.set()
        assert engine.wait_for_end(run).output == "a"
    wsgi.close()


def test_a_later_invocation_brings_a_newer_poll_with_all_of_them(engine: FakeEngine) -> None:
    gate = Gate()
    engine.lease_seconds = 30.0
    with uvicorn_server(gate.app.asgi()) as engine.app_url:
        first = create(engine, "slow", "a")
        engine.wait_until(lambda: polled(engine, first) == 1)
        second = create(engine, "slow", "b")
        engine.wait_until(lambda: polled(engine, second) >= 1)
        assert {run.run_id for run in engine.polls[-1].runs} == {first.id, second.id}
        engine.wait_until(lambda: engine.open_poll_count == 1)
        gate.release.set()
        engine.wait_for_end(first), engine.wait_for_end(second)


@pytest.mark.parametrize("server", ASGI_SERVERS.values(), ids=ASGI_SERVERS)
def test_a_cancelled_run_is_stopped_while_its_body_waits(server: Callable[[Any], Any], engine: FakeEngine) -> None:
    app = durable.App("shop")
    entered, left = threading.Event(), threading.Event()

    @app.function(trigger=durable.Event("x"))
    async def slow(event: durable.ReceivedEvent, step: durable.Step) -> Any:
        async def body() -> None:
            import anyio

            entered.set()
            try:
                await anyio.sleep(60)
            finally:
                left.set()

        await step.run("slow", body)

    with server(app.asgi()) as engine.app_url:
        run = create(engine, "slow", "a")
        assert entered.wait(20)
        engine.wait_until(lambda: polled(engine, run) == 1)
        engine.cancel(run)
        assert left.wait(20)
        engine.wait_until(lambda: run.ends == ["nothing said"])
        # It is not asked about again: the engine would answer at once, for ever.
        assert polled(engine, run) == 1


def test_short_invocations_are_not_worth_a_poll(engine: FakeEngine) -> None:
    app = durable.App("shop")

    @app.function(trigger=durable.Event("x"))
    async def quick(event: durable.ReceivedEvent, step: durable.Step) -> Any:
        return await step.run("a", lambda: 1)

    with uvicorn_server(app.asgi()) as engine.app_url:
        for n in range(3):
            engine.wait_for_end(create(engine, "quick", str(n)))
    assert engine.polls == []


def test_an_engine_that_does_not_know_the_message_is_asked_once(engine: FakeEngine) -> None:
    gate = Gate()
    engine.disturb = [lambda *_: (404, {}, b'{"code":"not_found","message":"There is nothing here."}')]
    with uvicorn_server(gate.app.asgi()) as engine.app_url:
        run = create(engine, "block", "a")
        engine.wait_until(lambda: polled(engine, run) == 1)
        time.sleep(4 * alive.OLD_SECONDS)  # nothing happens, which has no condition to wait for
        assert polled(engine, run) == 1
        gate.release.set()
        engine.wait_for_end(run)


def test_a_lost_answer_is_followed_by_another_poll(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alive, "PAUSE_SECONDS_MIN", 0.01)
    gate = Gate()
    # The last is what a proxy says that has no route to the engine for a moment.
    engine.disturb = [lambda *_: (0, {}, b""), lambda *_: (503, {}, b"{}"), lambda *_: (404, {}, b"404 page not found")]
    with uvicorn_server(gate.app.asgi()) as engine.app_url:
        run = create(engine, "block", "a")
        engine.wait_until(lambda: polled(engine, run) >= 4)
        gate.release.set()
        engine.wait_for_end(run)


def test_what_the_process_lacks_for_a_moment_is_tried_again(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread for the first invocation, then a file descriptor for the second one's."""
    lacking = ["thread", "descriptor"]
    start, selector = threading.Thread.start, alive.selectors.DefaultSelector

    def start_or_fail(thread: threading.Thread) -> None:
        if thread.name == "durable-alive" and "thread" in lacking:
            lacking.remove("thread")
            raise RuntimeError("can't start new thread")
        start(thread)

    def open_or_fail() -> Any:
        if threading.current_thread().name == "durable-alive" and "descriptor" in lacking:
            lacking.remove("descriptor")
            raise OSError(24, "Too many open files")
        return selector()

    monkeypatch.setattr(threading.Thread, "start", start_or_fail)
    monkeypatch.setattr(alive.selectors, "DefaultSelector", open_or_fail)
    monkeypatch.setattr(alive, "PAUSE_SECONDS_MAX", 0.01)
    gate = Gate()
    with uvicorn_server(gate.app.asgi()) as engine.app_url:
        first = create(engine, "slow", "a")
        until(lambda: "a" in gate.entered)
        second = create(engine, "slow", "b")
        engine.wait_until(lambda: polled(engine, first) >= 1 and polled(engine, second) >= 1)
        assert lacking == []
        gate.release.set()
        engine.wait_for_end(first), engine.wait_for_end(second)
