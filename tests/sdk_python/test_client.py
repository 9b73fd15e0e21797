"""Sending and starting over HTTP, from asyncio, Trio and plain code: tries, refusals, answers that are not the engine's."""

import asyncio
import gc
import json
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

import durable
from durable import client as client_module
from protocol import signing
from tests.sdk_python.app_servers import until, uvicorn_server
from tests.sdk_python.fake_engine import FakeEngine, environment_of


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeEngine]:
    with environment_of(FakeEngine(), monkeypatch) as engine:
        engine.triggers = {"onboarding": ["user.created"]}
        yield engine


@pytest.fixture
def app() -> Iterator[durable.App]:
    app = durable.App("shop")

    @app.function(trigger=durable.Event("user.created"))
    async def onboarding(event: durable.ReceivedEvent, step: durable.Step) -> Any:
        if event.data == "fail":
            raise durable.NonRetriableError("no such user", code="unknown_user")
        return {"hello": event.data}

    yield app
    app.close()


class Ways:
    """One call in three ways: on asyncio, on Trio, and from plain code."""

    def __init__(self, name: str, app: durable.App) -> None:
        self.name = name
        self.app = app

    def send(self, *arguments: Any, **named: Any) -> durable.EventAnswer:
        return self._run(lambda: self.app.send(*arguments, **named), lambda: self.app.send_sync(*arguments, **named))

    def send_many(self, events: Any) -> list[durable.EventAnswer]:
        return self._run(lambda: self.app.send_many(events), lambda: self.app.send_many_sync(events))

    def start(self, *arguments: Any, **named: Any) -> durable.RunHandle:
        return self._run(lambda: self.app.start(*arguments, **named), lambda: self.app.start_sync(*arguments, **named))

    def result(self, handle: durable.RunHandle, timeout: float | None = None) -> Any:
        return self._run(lambda: handle.result(timeout), lambda: handle.result_sync(timeout))

    def register(self, url: str) -> durable.SyncAnswer:
        return self._run(lambda: self.app.register(url), lambda: self.app.register_sync(url))

    def _run(self, is_async: Callable[[], Awaitable[Any]], is_sync: Callable[[], Any]) -> Any:
        if self.name == "plain":
            return is_sync()

        async def main() -> Any:
            try:
                with anyio.fail_after(30):
                    return await is_async()
            finally:
                await self.app.aclose()

        return anyio.run(main, backend=self.name)


@pytest.fixture(params=["asyncio", "trio", "plain"])
def ways(request: pytest.FixtureRequest, app: durable.App) -> Ways:
    return Ways(request.param, app)


def test_an_event_is_sent_and_the_answer_names_the_runs(ways: Ways, engine: FakeEngine) -> None:
    answer = ways.send("user.created", {"id": 1}, id="evt-1")
    assert (answer.id, answer.duplicate, [run.function for run in answer.runs]) == ("evt-1", False, ["onboarding"])
    again = ways.send("user.created", {"id": 1}, id="evt-1")
    assert again.duplicate and not again.conflict and again.runs == answer.runs
    assert ways.send("user.created", {"id": 2}, id="evt-1").conflict


def test_many_events_are_sent_at_once_and_each_has_an_id(ways: Ways, engine: FakeEngine) -> None:
    answers = ways.send_many([{"name": "a", "data": {"n": n}} for n in range(1000)])
    assert len({answer.id for answer in answers}) == 1000
    assert engine.requests == ["/v1/events"]


def disturbed(status: int, headers: dict[str, str] | None = None, body: bytes = b"{}") -> Callable[..., Any]:
    """The engine has taken the message, but its answer is lost on the way."""
    return lambda *_: (status, headers or {}, body)


def test_a_lost_answer_is_asked_for_again_and_the_event_happens_once(
    ways: Ways, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "PAUSE_SECONDS_MIN", 0.01)
    engine.disturb = [disturbed(0), disturbed(503, {"retry-after": "0"}), disturbed(429), disturbed(502)]
    answer = ways.send("user.created", {"id": 1})
    assert answer.duplicate and len(answer.runs) == 1
    assert len(engine.events) == len(engine.runs) == 1
    assert engine.requests == ["/v1/events"] * 5


def test_the_pause_that_a_busy_engine_asks_for_is_kept(ways: Ways, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "PAUSE_SECONDS_MIN", 0.01)
    engine.disturb = [disturbed(503, {"retry-after": "1"})]
    started = time.monotonic()
    ways.send("a")
    assert time.monotonic() - started >= 1


def test_a_start_that_is_tried_again_starts_one_run(ways: Ways, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "PAUSE_SECONDS_MIN", 0.01)
    engine.disturb = [disturbed(0)]
    handle = ways.start("onboarding", {"id": 1})
    assert list(engine.runs) == [handle.run_id]


def test_an_engine_that_is_away_is_unreachable_after_a_bounded_time(ways: Ways, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "TRY_AGAIN_SECONDS", 0.3)
    monkeypatch.setenv("DURABLE_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("DURABLE_ENV", "prod")
    monkeypatch.setenv("DURABLE_SIGNING_KEY", signing.new_key())
    started = time.monotonic()
    with pytest.raises(durable.EngineUnreachable, match=r"http://127\.0\.0\.1:1 .*DURABLE_URL"):
        ways.send("a")
    assert time.monotonic() - started < 5


def test_an_answer_of_another_key_is_not_trusted_nor_asked_for_again(
    ways: Ways, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "TRY_AGAIN_SECONDS", 0.0)
    recorded: list[tuple[int, dict[str, str], bytes]] = []

    def record(*answer: Any) -> Any:
        recorded.append(answer)
        return answer

    def forged(status: int, headers: dict[str, str], body: bytes) -> Any:
        stranger = [signing.Key.parse(signing.new_key())]
        signature = signing.sign(stranger, headers["webhook-id"], int(headers["webhook-timestamp"]), body)
        return status, {**headers, "webhook-signature": signature}, body

    engine.disturb = [
        record,
        forged,
        lambda *_: recorded[0],  # a true answer, of another request
        lambda status, headers, body: (status, headers, body + b" "),
        lambda status, headers, body: (status, {}, body),
    ]
    ways.send("a", id="1")
    for _ in range(4):
        with pytest.raises(durable.EngineUnreachable, match="can not be trusted"):
            ways.send("a", id="1")


def test_a_refusal_is_raised_with_its_words_and_not_tried_again(ways: Ways, engine: FakeEngine) -> None:
    words = {"code": "paused", "message": "No.", "hint": "Ask later.", "place": "/events/0"}
    engine.disturb = [disturbed(409, {}, json.dumps(words).encode()), disturbed(404, {}, b"<html>")]
    with pytest.raises(durable.Refused, match=r"No\. Ask later\.") as refused:
        ways.send("a")
    assert (refused.value.code, refused.value.status, refused.value.place) == ("paused", 409, "/events/0")
    with pytest.raises(durable.Refused) as refused:
        ways.send("a")
    assert (refused.value.code, refused.value.status) == ("http_404", 404)
    assert len(engine.requests) == 2


def test_a_wrong_key_is_refused_by_the_engine_with_what_to_check(
    ways: Ways, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DURABLE_SIGNING_KEY", signing.new_key())
    with pytest.raises(durable.Refused, match="DURABLE_SIGNING_KEY") as refused:
        ways.send("a")
    assert refused.value.status == 401


def test_results_come_as_values_and_as_errors(ways: Ways, engine: FakeEngine) -> None:
    with uvicorn_server(ways.app.asgi()) as url:
        engine.app_url = url
        handle = ways.start(ways.app.functions["onboarding"], {"id": 1}, id="once")
        assert ways.result(handle, 20) == {"hello": {"id": 1}}
        again = ways.start("onboarding", {"id": 1}, id="once")
        assert again.run_id == handle.run_id and again.is_duplicate
        failing = ways.start("onboarding", "fail")
        with pytest.raises(durable.RunFailed, match="no such user") as failed:
            ways.result(failing, 20)
        assert (failed.value.name, failed.value.code) == ("NonRetriableError", "unknown_user")


def test_a_run_that_takes_longer_than_the_timeout_is_not_ready(ways: Ways, engine: FakeEngine) -> None:
    handle = ways.start("onboarding", 1)
    for timeout in (0, 0.05):
        with pytest.raises(TimeoutError, match="has not ended"):
            ways.result(handle, timeout)
    engine.cancel(engine.runs[handle.run_id])
    with pytest.raises(durable.RunCancelled):
        ways.result(handle)


def test_the_result_is_waited_for_at_the_engine_and_not_polled(ways: Ways, engine: FakeEngine) -> None:
    handle = ways.start("onboarding", 1)
    run = engine.runs[handle.run_id]

    def complete() -> None:
        engine.wait_until(lambda: True)
        with engine._changed:
            run.status, run.output = "completed", 7
            engine._changed.notify_all()

    timer = threading.Timer(0.3, complete)
    timer.start()
    assert ways.result(handle, 10) == 7
    assert engine.requests.count("/v1/result") == 1


def test_an_app_registers_its_url(ways: Ways, engine: FakeEngine) -> None:
    answer = ways.register("https://shop.example/api/durable")
    assert answer.functions == 1 and engine.requests == ["/v1/sync"]
    with pytest.raises(ValueError, match="serve URL"):
        ways.register("shop.example")


def test_connections_are_kept_alive_and_closed(engine: FakeEngine, app: durable.App, recwarn: pytest.WarningsRecorder) -> None:
    async def main() -> None:
        await app.send("a")
        [pool] = app.client._pools.values()
        await asyncio.gather(*(app.send("a") for _ in range(3)))
        assert list(app.client._pools.values()) == [pool]
        await app.aclose()
        assert pool.is_closed
        await app.send("a")
        await app.aclose()

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(main())
    assert not [warning for warning in recwarn if issubclass(warning.category, ResourceWarning)]


def test_no_proxy_of_the_environment_is_used(ways: Ways, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert ways.send("a").id


def test_a_redirect_is_not_followed(ways: Ways, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "TRY_AGAIN_SECONDS", 0.0)
    engine.disturb = [disturbed(307, {"location": engine.url + "/v1/events"})]
    with pytest.raises(durable.EngineUnreachable, match="307"):
        ways.send("a")
    assert len(engine.requests) == 1


def test_a_child_of_a_fork_opens_connections_of_its_own(engine: FakeEngine, app: durable.App) -> None:
    app.send_sync("a", id="parent")
    child = os.fork()
    if child == 0:
        try:
            app.send_sync("a", id="child")
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    app.send_sync("a", id="parent again")
    assert set(engine.events) == {"parent", "child", "parent again"}


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_loop_for_each_send_does_not_use_up_file_descriptors(backend: str, engine: FakeEngine, app: durable.App) -> None:
    def open_sockets() -> int:
        gc.collect()
        links = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
        return sum(str(link).startswith("socket:") for link in links)

    async def send() -> None:
        await app.send("a")

    native = {"loop_factory": asyncio.SelectorEventLoop} if backend == "asyncio" else {}
    anyio.run(send, backend=backend, backend_options=native)
    before = open_sockets()
    for _ in range(10):
        anyio.run(send, backend=backend, backend_options=native)
    # The fake engine in this process has a socket for each connection that is open at the other end.
    until(lambda: open_sockets() <= before + 4)
