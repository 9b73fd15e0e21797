"""What the serve URL refuses, and how: signatures, replays, workspaces, methods, sizes, garbage. Asyncio and Trio."""

import json
import logging
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import anyio
import pytest

import durable
from durable import http_asgi
from durable.replay_memory import ReplayMemory
from protocol import messages, signing
from tests.sdk_python.asgi_calls import body_of, call, headers_of, status_of
from tests.sdk_python.fake_engine import KEY_TEXT, FakeEngine

MANIFEST = {"type": "manifest", "workspace": {"app": "shop", "env": "prod"}}
RUN_ID = "01990a3c-7d1e-7c3a-9b52-6f1f0e7f9a10"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DURABLE_ENV", "prod")
    monkeypatch.setenv("DURABLE_SIGNING_KEY", KEY_TEXT)
    monkeypatch.setenv("DURABLE_URL", "http://127.0.0.1:9")


@pytest.fixture
def engine() -> Any:
    engine = FakeEngine()
    yield engine
    engine._server.server_close()


@pytest.fixture(params=["asyncio", "trio"])
def on_loop(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """Runs one coroutine on a loop of its own."""

    def run(work: Coroutine[Any, Any, Any]) -> Any:
        async def main() -> Any:
            with anyio.fail_after(20):
                return await work

        return anyio.run(main, backend=request.param)

    return run


@pytest.fixture
def asgi() -> Any:
    app = durable.App("shop")

    @app.function(trigger=durable.Event("x"))
    async def quick(event: durable.ReceivedEvent, step: durable.Step) -> Any:
        return event.data

    return app.asgi()


def bytes_of(message: Any) -> bytes:
    return json.dumps(message).encode()


def signed(engine: FakeEngine, body: bytes, **changes: Any) -> dict[str, Any]:
    return {"headers": engine.signed_headers(body, **changes), "parts": [body]}


def refused(sent: Any, status: int, code: str) -> dict[str, Any]:
    assert status_of(sent) == status, body_of(sent)
    words = json.loads(body_of(sent))
    assert words["code"] == code and words["message"]
    assert headers_of(sent)["content-length"] == str(len(body_of(sent)))
    return dict(words)


def require_signed(engine: FakeEngine, sent: Any, request_id: str) -> None:
    headers = headers_of(sent)
    assert headers["webhook-id"] == "re_" + request_id
    signing.verify(
        engine.keys, headers["webhook-id"], headers["webhook-timestamp"], headers["webhook-signature"], body_of(sent), time.time()
    )


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "post"])
def test_other_methods_get_405_with_an_empty_body(asgi: Any, on_loop: Any, method: str) -> None:
    sent = on_loop(call(asgi, method=method))
    assert status_of(sent) == 405 and body_of(sent) == b"" and headers_of(sent)["allow"] == "POST"


def test_the_manifest_is_signed_and_also_given_to_the_star(asgi: Any, on_loop: Any, engine: FakeEngine) -> None:
    for app in ("shop", "*"):
        body = bytes_of({"type": "manifest", "workspace": {"app": app, "env": "prod"}})
        sent = on_loop(call(asgi, **signed(engine, body, message_id=f"msg_{app.replace('*', 'x')}", workspace=f"{app}/prod")))
        assert status_of(sent) == 200
        require_signed(engine, sent, f"msg_{app.replace('*', 'x')}")
        assert str(messages.decode_manifest(body_of(sent)).workspace) == "shop/prod"


def test_a_wrong_signature_is_401_and_the_reason_only_in_the_log(
    asgi: Any, on_loop: Any, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    body = bytes_of(MANIFEST)
    stranger = [signing.Key.parse(signing.new_key())]
    good = engine.signed_headers(body)
    cases: list[tuple[str, dict[str, Any]]] = [
        ("another key", signed(engine, body, keys=stranger)),
        ("too old", signed(engine, body, age_seconds=301)),
        ("from the future", signed(engine, body, age_seconds=-302)),
        ("another body", {"headers": good, "parts": [body + b" "]}),
        ("another id", {"headers": {**good, "webhook-id": "msg_other"}, "parts": [body]}),
        ("no signature", {"headers": {key: value for key, value in good.items() if key != "webhook-signature"}, "parts": [body]}),
        ("no id", {"headers": {key: value for key, value in good.items() if key != "webhook-id"}, "parts": [body]}),
        ("garbage", {"headers": {**good, "webhook-signature": "v1,\u00ff"}, "parts": [body]}),
    ]
    answers = set()
    for _, request in cases:
        sent = on_loop(call(asgi, **request))
        refused(sent, 401, "bad_signature")
        assert "webhook-signature" not in headers_of(sent)
        answers.add(body_of(sent))
    assert len(answers) == 1
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == len(cases)
    assert KEY_TEXT[6:] not in caplog.text


def test_a_header_that_comes_twice_is_refused(asgi: Any, on_loop: Any, engine: FakeEngine) -> None:
    body = bytes_of(MANIFEST)
    headers = [(name.encode(), value.encode()) for name, value in engine.signed_headers(body).items()]

    async def ask(extra: tuple[bytes, bytes]) -> list[dict[str, Any]]:
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await asgi({"type": "http", "method": "POST", "path": "/", "headers": [*headers, extra]}, receive, send)
        return sent

    for name in (b"webhook-id", b"Webhook-Timestamp", b"webhook-signature"):
        refused(on_loop(ask((name, dict(headers)[name.lower()]))), 401, "bad_signature")
    refused(on_loop(ask((b"durable-workspace", b"shop/prod"))), 401, "wrong_workspace")


def test_a_recorded_call_can_not_be_sent_again(asgi: Any, on_loop: Any, engine: FakeEngine) -> None:
    request = signed(engine, bytes_of(MANIFEST))
    assert status_of(on_loop(call(asgi, **request))) == 200
    refused(on_loop(call(asgi, **request)), 401, "bad_signature")


def test_a_refused_call_does_not_use_its_id_up(asgi: Any, on_loop: Any, engine: FakeEngine) -> None:
    body = bytes_of(MANIFEST)
    stranger = [signing.Key.parse(signing.new_key())]
    refused(on_loop(call(asgi, **signed(engine, body, message_id="msg_1", keys=stranger))), 401, "bad_signature")
    assert status_of(on_loop(call(asgi, **signed(engine, body, message_id="msg_1")))) == 200


@pytest.mark.parametrize(
    ("header", "app", "env"),
    [
        ("other/prod", "other", "prod"),
        ("shop/dev", "shop", "dev"),
        ("", "shop", "prod"),
        ("*/dev", "*", "dev"),
        # The header is not signed: the body must say the same.
        ("shop/prod", "other", "prod"),
        ("shop/prod", "*", "prod"),
        ("*/prod", "shop", "prod"),
        ("*/prod", "*", "dev"),
    ],
)
def test_another_workspace_is_401_wrong_workspace(
    asgi: Any, on_loop: Any, engine: FakeEngine, header: str, app: str, env: str
) -> None:
    body = bytes_of({"type": "manifest", "workspace": {"app": app, "env": env}})
    refused(on_loop(call(asgi, **signed(engine, body, workspace=header))), 401, "wrong_workspace")


def test_the_star_may_not_invoke(asgi: Any, on_loop: Any, engine: FakeEngine) -> None:
    body = bytes_of({"type": "invoke", "workspace": {"app": "*", "env": "prod"}, "invocations": []})
    refused(on_loop(call(asgi, **signed(engine, body, workspace="*/prod"))), 401, "wrong_workspace")


@pytest.mark.parametrize(
    ("body", "place"),
    [
        (b"", None),
        (b"garbage", None),
        (b"\xff\xfe", None),
        (b"[]", None),
        (b"[" * 100_000, None),
        (b'{"type":"events","workspace":{"app":"shop","env":"prod"},"events":[]}', "/type"),
        (b'{"type":"invoke","workspace":{"app":"shop","env":"prod"}}', None),
        (b'{"type":"manifest","workspace":{"app":1,"env":"prod"}}', "/workspace/app"),
    ],
)
def test_garbage_that_is_signed_is_a_signed_400(
    asgi: Any, on_loop: Any, engine: FakeEngine, body: bytes, place: str | None
) -> None:
    sent = on_loop(call(asgi, **signed(engine, body, message_id="msg_1")))
    assert refused(sent, 400, "bad_message").get("place") == place
    require_signed(engine, sent, "msg_1")


def test_a_body_over_the_limit_is_413_and_not_read_to_its_end(
    asgi: Any, on_loop: Any, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_asgi, "BODY_BYTES_MAX", 1_000)
    refused(on_loop(call(asgi, headers={"content-length": "1001"}, parts=[])), 413, "too_large")
    refused(on_loop(call(asgi, parts=[b"x" * 600, b"x" * 600, b"never read"])), 413, "too_large")


def test_a_client_that_leaves_in_the_middle_of_its_body_gets_nothing(asgi: Any, on_loop: Any) -> None:
    assert on_loop(call(asgi, parts=[b'{"type":'], leaves=True)) == []


def invocation(function: str, run_id: str = RUN_ID) -> dict[str, Any]:
    event = {"id": "e", "name": "x", "data": {"a": 1}, "received_at": "2026-01-31T09:00:00.000000Z"}
    memo = [{"id": "a", "kind": "step", "position": 4, "data": 1}]
    return {
        "run_id": run_id,
        "generation": 3,
        "attempt": 1,
        "function": function,
        "event": event,
        "steps": memo,
        "lease_seconds": 30,
    }


def lines_of(engine: FakeEngine, sent: Any, request_id: str) -> list[Any]:
    lines = [line for line in body_of(sent).split(b"\n") if line]
    return [json.loads(signing.verify_line(engine.keys, request_id, line, time.time())) for line in lines]


def test_an_unknown_function_does_not_disturb_the_others_of_its_call(asgi: Any, on_loop: Any, engine: FakeEngine) -> None:
    second = RUN_ID.replace("01990a3c", "01990a3d")
    message = {
        "type": "invoke",
        "workspace": MANIFEST["workspace"],
        "invocations": [invocation("nope"), invocation("quick", second)],
    }
    sent = on_loop(call(asgi, **signed(engine, bytes_of(message), message_id="msg_1")))
    assert status_of(sent) == 200
    assert headers_of(sent) == {
        "content-type": "application/vnd.durable.lines",
        "cache-control": "no-transform",
        "x-accel-buffering": "no",
        "webhook-id": "re_msg_1",
    }
    lines = lines_of(engine, sent, "msg_1")
    assert [line["type"] for line in lines] == ["started", "started", "ended", "ended"]
    ended = {line["run_id"]: line for line in lines[2:]}
    assert ended[RUN_ID] == {"type": "ended", "run_id": RUN_ID, "generation": 3, "known": 4, "ops": [{"op": "unknown_function"}]}
    assert ended[second]["ops"] == [{"op": "complete", "output": {"a": 1}}]
    assert sent[-1]["more_body"] is False and all(message["more_body"] for message in sent[1:-1])


def test_the_reply_starts_at_once_and_is_kept_awake_by_empty_lines(
    on_loop: Any, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_asgi, "KEEP_AWAKE_SECONDS", 0.02)
    app = durable.App("shop")
    seen: list[dict[str, Any]] = []

    @app.function(trigger=durable.Event("x"))
    async def slow(event: durable.ReceivedEvent, step: durable.Step) -> Any:
        while sum(message.get("body") == b"\n" for message in seen) < 3:
            await anyio.sleep(0.005)
        return len(seen)

    async def ask() -> None:
        message = {"type": "invoke", "workspace": MANIFEST["workspace"], "invocations": [invocation("slow")]}
        body = bytes_of(message)
        headers = [(name.encode(), value.encode()) for name, value in engine.signed_headers(body, message_id="msg_1").items()]
        coming = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if not coming:
                await anyio.sleep_forever()
            return coming.pop()

        async def send(message: dict[str, Any]) -> None:
            seen.append(message)

        await app.asgi()({"type": "http", "method": "POST", "path": "/", "headers": headers}, receive, send)

    on_loop(ask())
    assert seen[0]["type"] == "http.response.start" and b'"started"' in seen[1]["body"]
    assert [message["body"] for message in seen[2:5]] == [b"\n"] * 3
    lines = lines_of(engine, seen, "msg_1")
    assert [line["type"] for line in lines] == ["started", "ended"]


def test_nothing_is_left_on_the_loop_after_a_call(asgi: Any, engine: FakeEngine) -> None:
    import asyncio

    async def main() -> None:
        message = {"type": "invoke", "workspace": MANIFEST["workspace"], "invocations": [invocation("quick")]}
        await call(asgi, **signed(engine, bytes_of(message)))
        for _ in range(10):
            await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_nothing_is_left_on_trio_after_a_call(asgi: Any, engine: FakeEngine) -> None:
    import trio

    async def main() -> None:
        message = {"type": "invoke", "workspace": MANIFEST["workspace"], "invocations": [invocation("quick")]}
        root = trio.lowlevel.current_root_task()
        assert root is not None
        before = [task for nursery in root.child_nurseries for task in nursery.child_tasks]
        await call(asgi, **signed(engine, bytes_of(message)))
        await trio.testing.wait_all_tasks_blocked()
        assert [task for nursery in root.child_nurseries for task in nursery.child_tasks] == before

    import trio.testing

    trio.run(main)


# Configuration.


async def lifespan(asgi: Any) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []
    coming = [{"type": "lifespan.shutdown"}, {"type": "lifespan.startup"}]

    async def receive() -> dict[str, Any]:
        return coming.pop()

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await asgi({"type": "lifespan"}, receive, send)
    return sent


def test_a_server_starts_and_stops_the_app_by_its_lifespan(asgi: Any, on_loop: Any) -> None:
    assert [message["type"] for message in on_loop(lifespan(asgi))] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


def test_without_an_environment_the_server_refuses_to_start_and_says_what_to_set(
    asgi: Any, on_loop: Any, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DURABLE_ENV")
    [failed] = on_loop(lifespan(asgi))
    assert failed["type"] == "lifespan.startup.failed" and "DURABLE_ENV=dev" in failed["message"]
    refused(on_loop(call(asgi, **signed(engine, bytes_of(MANIFEST)))), 503, "not_configured")


def test_an_app_that_starts_before_durable_dev_serves_once_the_key_is_there(
    asgi: Any, on_loop: Any, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DURABLE_ENV", "dev")
    monkeypatch.setenv("DURABLE_HOME", str(tmp_path))
    monkeypatch.delenv("DURABLE_SIGNING_KEY")
    body = bytes_of({"type": "manifest", "workspace": {"app": "shop", "env": "dev"}})
    assert on_loop(lifespan(asgi))[0]["type"] == "lifespan.startup.complete"
    refused(on_loop(call(asgi, **signed(engine, body, workspace="shop/dev"))), 503, "not_configured")
    (tmp_path / "dev.key").write_text(KEY_TEXT + "\n")
    assert status_of(on_loop(call(asgi, **signed(engine, body, workspace="shop/dev")))) == 200


def test_the_memory_of_ids_is_bounded_and_forgets_after_ten_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1_000.0]
    monkeypatch.setattr("durable.replay_memory.time.monotonic", lambda: now[0])
    memory = ReplayMemory(ids_max=3)
    assert memory.is_new("a") and not memory.is_new("a")
    now[0] += 600
    assert not memory.is_new("a")
    now[0] += 0.1
    assert memory.is_new("a")
    assert all(memory.is_new(name) for name in ("b", "c", "d"))
    assert memory.is_new("a"), "the oldest was forgotten for the sake of the bound"
    assert not memory.is_new("d")
