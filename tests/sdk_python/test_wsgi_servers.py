"""The app under WSGI: a threaded server, Flask beside it, refusals, a client that leaves, the end of the process."""

import io
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import durable
from durable import http_wsgi
from protocol import signing
from tests.sdk_python.app_servers import wsgi_server
from tests.sdk_python.fake_engine import FakeEngine, environment_of


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeEngine]:
    with environment_of(FakeEngine(), monkeypatch) as engine:
        yield engine


def story_app(entered: threading.Event, release: threading.Event) -> durable.App:
    app = durable.App("shop")

    @app.function(trigger=durable.Event("user.created"))
    def story(event: durable.ReceivedEvent, step: durable.SyncStep) -> Any:
        first = step.run("first", lambda: threading.current_thread() is not threading.main_thread())
        step.sleep("pause", 0.1)
        return [first, step.run("last", lambda: "last")]

    @app.function(trigger=durable.Event("user.created"))
    async def async_story(event: durable.ReceivedEvent, step: durable.Step) -> Any:
        return await step.run("only", lambda: event.data)

    @app.function(trigger=durable.Event("slow"))
    def slow(event: durable.ReceivedEvent, step: durable.SyncStep) -> Any:
        def body() -> str:
            entered.set()
            assert release.wait(20)
            return "done"

        return step.run("slow", body)

    return app


def test_runs_come_to_their_end_beside_flask(engine: FakeEngine) -> None:
    from flask import Flask
    from werkzeug.middleware.dispatcher import DispatcherMiddleware

    app = story_app(threading.Event(), threading.Event())
    site = Flask("shop")

    @site.post("/buy")
    def buy() -> Any:
        return {"runs": len(app.send_sync("user.created", {"id": 7}).runs)}

    wsgi = app.wsgi()
    site.wsgi_app = DispatcherMiddleware(site.wsgi_app, {"/api/durable": wsgi})  # type: ignore[method-assign]
    with wsgi_server(site) as url:
        engine.app_url = url + "/api/durable"
        engine.read_manifest(star=True)
        assert httpx.post(url + "/buy").json() == {"runs": 2}
        for run in list(engine.runs.values()):
            engine.wait_for_end(run)
        assert {run.function: run.output for run in engine.runs.values()} == {"story": [True, "last"], "async_story": {"id": 7}}
    wsgi.close()
    assert not any(thread.name == "durable-loop" for thread in threading.enumerate())


def test_the_reply_starts_at_once_and_is_kept_awake(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_wsgi, "KEEP_AWAKE_SECONDS", 0.02)
    entered, release = threading.Event(), threading.Event()
    wsgi = story_app(entered, release).wsgi()
    with wsgi_server(wsgi) as url:
        run = leased_run(engine)
        body = json.dumps(engine.invoke_message(run)).encode()
        headers = engine.signed_headers(body, message_id="msg_1")
        with httpx.stream("POST", url, content=body, headers=headers) as response:
            chunks = response.iter_raw()
            assert b'"started"' in next(chunks)
            assert next(chunks).strip(b"\n") == b""
            release.set()
            last = b"".join(chunks).strip(b"\n")
            assert b"complete" in signing.verify_line(engine.keys, "msg_1", last, time.time())
    wsgi.close()


def test_a_client_that_leaves_does_not_end_the_handler(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    # A WSGI server learns that a client has left when it writes.
    monkeypatch.setattr(http_wsgi, "KEEP_AWAKE_SECONDS", 0.02)
    entered, release = threading.Event(), threading.Event()
    wsgi = story_app(entered, release).wsgi()
    closed = threading.Event()

    class Watched:
        def __init__(self, reply: Any) -> None:
            self.reply = reply

        def __iter__(self) -> Iterator[bytes]:
            return iter(self.reply)

        def close(self) -> None:
            self.reply.close()
            closed.set()

    with wsgi_server(lambda environ, start: Watched(wsgi(environ, start))) as url:
        run = leased_run(engine)
        body = json.dumps(engine.invoke_message(run)).encode()
        with httpx.stream("POST", url, content=body, headers=engine.signed_headers(body)) as response:
            next(response.iter_raw())
            assert entered.wait(20)
        assert closed.wait(20)
        release.set()
        assert engine.wait_for_end(run).output == "done"
    assert run.ends == ["checkpoint"]
    wsgi.close()


def leased_run(engine: FakeEngine) -> Any:
    run = engine.create_run("slow", {"id": "e", "name": "slow", "data": None})
    run.generation, run.is_leased, run.is_ready, run.status = 1, True, False, "running"
    return run


def ask(wsgi: Any, **environ: Any) -> tuple[str, dict[str, str], bytes]:
    answer: list[Any] = []
    base = {"REQUEST_METHOD": "POST", "wsgi.input": io.BytesIO(b""), "CONTENT_LENGTH": "0"}
    body = b"".join(wsgi({**base, **environ}, lambda status, headers: answer.append((status, dict(headers)))))
    return answer[0][0], answer[0][1], body


def signed(engine: FakeEngine, body: bytes, **changes: Any) -> dict[str, Any]:
    headers = engine.signed_headers(body, **changes)
    names = {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in headers.items() if name != "content-type"}
    return {**names, "wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}


def test_refusals_are_those_of_the_asgi_app(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    wsgi = story_app(threading.Event(), threading.Event()).wsgi()
    manifest = b'{"type":"manifest","workspace":{"app":"shop","env":"prod"}}'
    assert ask(wsgi, REQUEST_METHOD="GET") == ("405 Method Not Allowed", {"allow": "POST", "content-length": "0"}, b"")
    assert ask(wsgi, **signed(engine, manifest))[0] == "200 OK"
    request = signed(engine, manifest, message_id="msg_1")
    assert ask(wsgi, **request)[0] == "200 OK"
    request["wsgi.input"].seek(0)
    for environ, status, code in [
        (request, "401 Unauthorized", "bad_signature"),
        (signed(engine, manifest, age_seconds=400), "401 Unauthorized", "bad_signature"),
        (signed(engine, manifest, workspace="other/prod"), "401 Unauthorized", "wrong_workspace"),
        (signed(engine, b"garbage"), "400 Bad Request", "bad_message"),
        ({"CONTENT_LENGTH": str((64 << 20) + 1)}, "413 Request Entity Too Large", "too_large"),
        ({"CONTENT_LENGTH": ""}, "401 Unauthorized", "wrong_workspace"),
    ]:
        said, _, body = ask(wsgi, **environ)
        assert (said.split()[0], json.loads(body)["code"]) == (status.split()[0], code)
    chunked = {**signed(engine, manifest), "CONTENT_LENGTH": "", "wsgi.input_terminated": True}
    assert ask(wsgi, **chunked)[0] == "200 OK"


def test_a_process_that_ends_finishes_what_runs(engine: FakeEngine, tmp_path: Path) -> None:
    """The end of the interpreter waits for a handler whose client has left, and its end reaches the engine."""
    run = leased_run(engine)
    body = json.dumps(engine.invoke_message(run)).encode()
    request = {"headers": engine.signed_headers(body), "body": body.decode()}
    (tmp_path / "request.json").write_text(json.dumps(request))
    script = tmp_path / "serve_once.py"
    script.write_text(SERVE_ONCE)
    subprocess.run([sys.executable, str(script), str(tmp_path / "request.json")], check=True, timeout=60)
    assert engine.wait_for_end(run).output == "done late"
    assert run.ends == ["checkpoint"]


SERVE_ONCE = """
import io, json, sys, threading, time
import durable

app = durable.App("shop")
entered = threading.Event()

@app.function(trigger=durable.Event("slow"))
def slow(event, step):
    def body():
        entered.set()
        time.sleep(0.5)
        return "done late"
    return step.run("slow", body)

request = json.load(open(sys.argv[1]))
raw = request["body"].encode()
environ = {"REQUEST_METHOD": "POST", "wsgi.input": io.BytesIO(raw), "CONTENT_LENGTH": str(len(raw))}
environ |= {"HTTP_" + name.upper().replace("-", "_"): value for name, value in request["headers"].items()}
reply = app.wsgi()(environ, lambda status, headers: None)
assert b"started" in next(iter(reply))
assert entered.wait(20)
reply.close()
"""
