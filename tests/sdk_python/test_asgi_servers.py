"""The app under real servers, with the fake engine on the other side: whole runs, every server, every loop."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

import durable
from durable.reply_lines import ReplyLines
from protocol import signing
from tests.sdk_python.app_servers import ASGI_SERVERS, uvicorn_server
from tests.sdk_python.fake_engine import FakeEngine, environment_of


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeEngine]:
    with environment_of(FakeEngine(), monkeypatch) as engine:
        yield engine


def story_app(calls: list[str]) -> durable.App:
    app = durable.App("shop")

    def note(word: str) -> str:
        calls.append(word)
        return word

    @app.function(trigger=durable.Event("user.created"))
    async def story(event: durable.ReceivedEvent, step: durable.Step) -> Any:
        first = await step.run("first", note, f"first {event.data['id']}")
        await step.sleep("pause", 0.2)
        approval = await step.wait_for_event("approval", event="approved", match={"id": event.data["id"]}, timeout="20s")
        ids = await step.send_event("tell", {"name": "told", "data": {"of": first}})
        last = await step.run("last", note, "last")
        return [first, approval.data if approval else None, len(ids), last]

    @app.function(trigger=durable.Event("sync.user.created"))
    def sync_story(event: durable.ReceivedEvent, step: durable.SyncStep) -> Any:
        first = step.run("first", note, "sync first")
        step.sleep("pause", 0.1)
        return [first, step.run("last", note, "sync last")]

    @app.function(trigger=durable.Event("flaky"), retries=2)
    async def flaky(event: durable.ReceivedEvent, step: durable.Step) -> str:
        def body() -> str:
            calls.append("try")
            if calls.count("try") < 3:
                raise RuntimeError("not yet")
            return "at last"

        return await step.run("flaky", body)

    return app


@pytest.mark.parametrize("server", ASGI_SERVERS.values(), ids=ASGI_SERVERS)
def test_runs_come_to_their_end_on_every_server(server: Callable[[Any], Any], engine: FakeEngine) -> None:
    calls: list[str] = []
    app = story_app(calls)
    with server(app.asgi()) as url:
        engine.app_url = url
        engine.read_manifest(star=True)
        [story] = app.send_sync("user.created", {"id": 7}).runs
        [sync_story] = app.send_sync("sync.user.created").runs
        [flaky] = app.send_sync("flaky").runs
        run = engine.runs[story.run_id]
        engine.wait_until(lambda: "approval" in run.waits)
        engine.post_event("approved", {"id": 8})
        engine.post_event("approved", {"id": 7})
        assert engine.wait_for_end(run).output == ["first 7", {"id": 7}, 1, "last"]
        assert engine.wait_for_end(engine.runs[sync_story.run_id]).output == ["sync first", "sync last"]
        assert engine.wait_for_end(engine.runs[flaky.run_id]).output == "at last"
    assert sorted(calls) == sorted(["first 7", "last", "sync first", "sync last", "try", "try", "try"])
    assert set(run.ends) == {"reply"}
    app.close()


@pytest.mark.parametrize("server", ASGI_SERVERS.values(), ids=ASGI_SERVERS)
def test_a_handler_goes_on_when_the_client_leaves_and_its_end_comes_by_checkpoint(
    server: Callable[[Any], Any], engine: FakeEngine, broken_reply: threading.Event
) -> None:
    app = durable.App("shop")
    entered, release = threading.Event(), threading.Event()

    @app.function(trigger=durable.Event("x"))
    async def slow(event: durable.ReceivedEvent, step: durable.Step) -> Any:
        def body() -> str:
            entered.set()
            assert release.wait(20)
            return "done"

        return [await step.run("slow", body)]

    with server(app.asgi()) as url:
        engine.app_url = None
        run = engine.create_run("slow", {"id": "e", "name": "x", "data": None})
        run.generation, run.is_leased, run.is_ready, run.status = 1, True, False, "running"
        leave_in_the_middle(engine, url, run, entered, broken_reply)
        release.set()
        assert engine.wait_for_end(run).output == ["done"]
    assert run.ends == ["checkpoint"]


@pytest.fixture
def broken_reply(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set when the app has noticed that its client left. What a server writes before that is lost without a trace."""
    noticed = threading.Event()
    close = ReplyLines.close

    def close_and_tell(lines: ReplyLines) -> Any:
        ends = close(lines)
        noticed.set()
        return ends

    monkeypatch.setattr(ReplyLines, "close", close_and_tell)
    return noticed


def leave_in_the_middle(engine: FakeEngine, url: str, run: Any, entered: threading.Event, noticed: threading.Event) -> None:
    """Call, wait until the body runs, and break the connection; returns when the app has noticed."""
    import json

    body = json.dumps(engine.invoke_message(run)).encode()
    with httpx.Client(trust_env=False) as client:
        with client.stream("POST", url, content=body, headers=engine.signed_headers(body)) as response:
            assert b'"started"' in next(response.iter_raw())
            assert entered.wait(20)
    assert noticed.wait(20)


@pytest.mark.parametrize("server", ASGI_SERVERS.values(), ids=ASGI_SERVERS)
def test_a_server_that_stops_lets_running_bodies_finish(server: Callable[[Any], Any], engine: FakeEngine) -> None:
    app = durable.App("shop")
    entered = threading.Event()

    @app.function(trigger=durable.Event("x"))
    async def slow(event: durable.ReceivedEvent, step: durable.Step) -> Any:
        def body() -> str:
            entered.set()
            time.sleep(0.5)
            return "done"

        return await step.run("slow", body)

    with server(app.asgi()) as url:
        engine.app_url = url
        run = engine.create_run("slow", {"id": "e", "name": "x", "data": None})
        assert entered.wait(20)
    assert engine.wait_for_end(run).output == "done"
    assert len(run.ends) == 1


def test_an_app_mounted_in_fastapi_behind_a_middleware_needs_no_lifespan(engine: FakeEngine) -> None:
    from fastapi import FastAPI, Request

    calls: list[str] = []
    app = story_app(calls)
    api = FastAPI()

    @api.middleware("http")
    async def plain_middleware(request: Request, call_next: Any) -> Any:
        return await call_next(request)

    @api.get("/hello")
    async def hello() -> str:
        return "hello"

    api.mount("/api/durable", app.asgi())
    with uvicorn_server(api) as url:
        assert httpx.get(url + "/hello").json() == "hello"
        engine.app_url = url + "/api/durable/"
        engine.read_manifest()
        [story] = app.send_sync("user.created", {"id": 7}).runs
        run = engine.runs[story.run_id]
        engine.wait_until(lambda: "approval" in run.waits)
        engine.post_event("approved", {"id": 7})
        assert engine.wait_for_end(run).output == ["first 7", {"id": 7}, 1, "last"]


def test_a_middleware_that_cancels_its_requests_does_not_end_the_invocation(
    engine: FakeEngine, broken_reply: threading.Event
) -> None:
    from fastapi import FastAPI, Request

    app = durable.App("shop")
    entered, release = threading.Event(), threading.Event()

    @app.function(trigger=durable.Event("x"))
    async def slow(event: durable.ReceivedEvent, step: durable.Step) -> Any:
        def body() -> str:
            entered.set()
            assert release.wait(20)
            return "done"

        return await step.run("slow", body)

    api = FastAPI()

    @api.middleware("http")
    async def plain_middleware(request: Request, call_next: Any) -> Any:
        return await call_next(request)

    api.mount("/d", app.asgi())
    with uvicorn_server(api) as url:
        run = engine.create_run("slow", {"id": "e", "name": "x", "data": None})
        run.generation, run.is_leased, run.is_ready, run.status = 1, True, False, "running"
        leave_in_the_middle(engine, url + "/d/", run, entered, broken_reply)
        release.set()
        assert engine.wait_for_end(run).output == "done"
    assert run.ends == ["checkpoint"]


def test_a_cancelled_run_ends_with_a_line_that_says_nothing_of_it(engine: FakeEngine) -> None:
    app = durable.App("shop")
    entered, release = threading.Event(), threading.Event()

    @app.function(trigger=durable.Event("x"))
    async def slow(event: durable.ReceivedEvent, step: durable.Step) -> Any:
        def body() -> str:
            entered.set()
            assert release.wait(20)
            return "done"

        await step.run("slow", body)
        return await step.run("never begun", lambda: 1)

    with uvicorn_server(app.asgi()) as url:
        engine.app_url = url
        run = engine.create_run("slow", {"id": "e", "name": "x", "data": None})
        assert entered.wait(20)
        engine.cancel(run)
        release.set()
    assert run.status == "cancelled" and run.ends == ["nothing said"]


def test_two_keys_while_they_rotate(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    new_text = signing.new_key()
    app = story_app([])
    monkeypatch.setenv("DURABLE_SIGNING_KEY", f"{signing.new_key()}, {engine.keys[0].text()} ")
    with pytest.raises(durable.ConfigurationError):
        monkeypatch.setenv("DURABLE_SIGNING_KEY", "whsec_nonsense")
        app.settings()
    monkeypatch.setenv("DURABLE_SIGNING_KEY", f"{engine.keys[0].text()} {new_text}")
    with uvicorn_server(app.asgi()) as url:
        engine.app_url = url
        engine.read_manifest()
        # Both sides know both; the peer may sign with either.
        engine.keys = [signing.Key.parse(new_text), engine.keys[0]]
        engine.read_manifest()
        [flaky] = app.send_sync("flaky").runs
        assert engine.wait_for_end(engine.runs[flaky.run_id]).output == "at last"
