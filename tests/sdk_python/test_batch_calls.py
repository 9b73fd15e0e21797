"""Many invocations in one call, through real servers: each has its own lines and its own fate."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

import durable
from durable.reply_lines import ReplyLines
from tests.sdk_python.app_servers import ASGI_SERVERS, wsgi_server
from tests.sdk_python.fake_engine import FakeEngine, environment_of
from tests.sdk_python.fake_run import FakeRun

COUNT = 100
SERVERS: dict[str, Any] = {**ASGI_SERVERS, "wsgi": wsgi_server}


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeEngine]:
    with environment_of(FakeEngine(), monkeypatch) as engine:
        yield engine


@pytest.fixture(params=SERVERS)
def served(request: pytest.FixtureRequest) -> Callable[[durable.App], Any]:
    """A context with the address of the app under one of the servers."""
    if request.param != "wsgi":
        return lambda app: ASGI_SERVERS[request.param](app.asgi())

    @contextmanager
    def serve(app: durable.App) -> Iterator[str]:
        wsgi = app.wsgi()
        with wsgi_server(wsgi) as url:
            yield url
        wsgi.close()

    return serve


def leased_runs(engine: FakeEngine, function: str, count: int = COUNT) -> list[FakeRun]:
    """Runs that are handed over, not yet told to the app."""
    assert engine.app_url is None
    runs = [engine.create_run(function, {"id": f"e{n}", "name": "x", "data": {"n": n}}) for n in range(count)]
    for run in runs:
        run.generation, run.is_leased, run.is_ready, run.status = 1, True, False, "running"
    return runs


def test_a_cancelled_run_of_a_call_ends_while_the_others_go_on(engine: FakeEngine) -> None:
    app = durable.App("shop")
    release = threading.Event()

    @app.function(trigger=durable.Event("x"))
    async def wait(event: durable.ReceivedEvent, step: durable.Step) -> Any:
        def body() -> int:
            assert event.data["n"] == 1 or release.wait(20)
            return int(event.data["n"])

        await step.run("first", lambda: None)
        return await step.run("second", body)

    runs = leased_runs(engine, "wait", 3)
    engine.cancel(runs[1])
    with ASGI_SERVERS["uvicorn"](app.asgi()) as url:
        engine.app_url = url
        call = threading.Thread(target=engine.invoke, args=(json.dumps(engine.invoke_message(*runs)).encode(),))
        call.start()
        engine.wait_until(lambda: runs[1].ends == ["nothing said"])
        assert not runs[0].has_ended and not runs[2].has_ended and call.is_alive()
        release.set()
        for run in (runs[0], runs[2]):
            engine.wait_for_end(run)
        call.join(20)
    assert [run.output for run in runs] == [0, None, 2]


def counting_app() -> durable.App:
    app = durable.App("shop")

    @app.function(trigger=durable.Event("x"))
    async def count(event: durable.ReceivedEvent, step: durable.Step) -> Any:
        async def body() -> int:
            return int(event.data["n"])

        first = await step.run("first", body)
        if first == 13:
            raise durable.NonRetriableError("thirteen")
        return [first, await step.run("second", body)]

    return app


def test_a_hundred_invocations_of_one_call_end_each_for_itself(served: Callable[..., Any], engine: FakeEngine) -> None:
    app = counting_app()
    with served(app) as url:
        runs = leased_runs(engine, "count")
        engine.app_url = url
        engine.invoke(json.dumps(engine.invoke_message(*runs)).encode())
    assert [run.output for run in runs if run.status == "completed"] == [[n, n] for n in range(COUNT) if n != 13]
    assert (runs[13].status, runs[13].error["message"]) == ("failed", "thirteen")
    assert {way for run in runs for way in run.ends} == {"reply"}
    # The steps of all runs travel together.
    assert engine.requests.count("/v1/checkpoint") < COUNT / 2


def test_one_broken_invocation_leaves_the_others_alone(
    served: Callable[..., Any], engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from durable import invocations

    honest = invocations.run_invocation

    async def broken(function: Any, invocation: Any, *arguments: Any, **named: Any) -> Any:
        if invocation.event.id == "e7":
            raise RuntimeError("a bug")
        return await honest(function, invocation, *arguments, **named)

    monkeypatch.setattr(invocations, "run_invocation", broken)
    with served(counting_app()) as url:
        runs = leased_runs(engine, "count", 10)
        engine.app_url = url
        engine.invoke(json.dumps(engine.invoke_message(*runs)).encode())
    assert [run.status for run in runs].count("completed") == 9
    assert runs[7].error["message"] == "a bug" and runs[7].is_ready


@pytest.mark.parametrize("server", ASGI_SERVERS.values(), ids=ASGI_SERVERS)
def test_a_client_that_leaves_in_the_middle_loses_no_end(
    server: Callable[[Any], Any], engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = durable.App("shop")
    all_entered, release = threading.Barrier(9), threading.Event()

    @app.function(trigger=durable.Event("x"))
    async def slow(event: durable.ReceivedEvent, step: durable.Step) -> Any:
        def body() -> str:
            all_entered.wait(20)
            assert release.wait(20)
            return "done"

        return await step.run("slow", body)

    # What a server writes before it has noticed that its client left is lost without a trace.
    noticed, close = threading.Event(), ReplyLines.close
    monkeypatch.setattr(ReplyLines, "close", lambda lines: (close(lines), noticed.set())[0])
    with server(app.asgi()) as url:
        runs = leased_runs(engine, "slow", 8)
        body = json.dumps(engine.invoke_message(*runs)).encode()
        with httpx.Client(trust_env=False) as client:
            with client.stream("POST", url, content=body, headers=engine.signed_headers(body)) as response:
                assert b'"started"' in next(response.iter_raw())
                all_entered.wait(20)
        assert noticed.wait(20)
        release.set()
        for run in runs:
            assert engine.wait_for_end(run).output == "done"
    assert {way for run in runs for way in run.ends} == {"checkpoint"}
