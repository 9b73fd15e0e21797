"""The API behind a real socket: bodies over their limits, half bodies, and what it says to odd HTTP."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import suppress
from uuid import UUID

import pytest
import trio

from engine.api.machine_routes import MACHINE_ROUTES
from engine.api.server import ROUTES
from engine.nursery import http_server
from engine.nursery.http_server import serve_http
from protocol.limits import BODY_BYTES_MAX
from tests.api_under_test import SHOP, Api, as_json, function, signed_headers


@pytest.fixture
async def port(api: Api) -> AsyncIterator[int]:
    closing = trio.Event()
    async with trio.open_nursery() as nursery:
        [bind] = await nursery.start(serve_http, api.app, "127.0.0.1", 0, closing)
        yield int(bind.rsplit(":", 1)[1])
        closing.set()
        nursery.cancel_scope.cancel()


async def exchange(port: int, request: bytes) -> tuple[int, bytes]:
    """Send raw bytes; the status and the whole answer, read until its body is complete or the connection closed."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    answer = b""
    async with stream:
        with trio.fail_after(10):
            with suppress(trio.BrokenResourceError):  # refused before all was sent
                await stream.send_all(request)
            while True:
                try:
                    part = await stream.receive_some(65536)
                except trio.BrokenResourceError:
                    break
                answer += part
                head, separator, body = answer.partition(b"\r\n\r\n")
                if not part or (separator and _is_whole(head, body)):
                    break
    return int(answer.split(b" ")[1]), answer


def _is_whole(head: bytes, body: bytes) -> bool:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return len(body) >= int(line.split(b":")[1])
    return False


def request_of(method: str, path: str, headers: dict[str, str], body: bytes = b"") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "host: localhost", *(f"{name}: {value}" for name, value in headers.items())]
    if "content-length" not in headers and "transfer-encoding" not in headers:
        lines.append(f"content-length: {len(body)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


async def test_a_signed_event_goes_through_the_socket(api: Api, port: int) -> None:
    body = json.dumps({"type": "events", "workspace": as_json(SHOP), "events": [{"name": "x"}]}).encode()
    status, answer = await exchange(port, request_of("POST", "/v1/events", signed_headers(api.keys[SHOP], SHOP, body), body))
    assert status == 200 and b"webhook-signature: v1," in answer.lower()


async def test_a_body_that_is_announced_too_large_is_refused_before_it_comes(port: int) -> None:
    request = request_of("POST", "/v1/events", {"content-length": str(BODY_BYTES_MAX + 1)})
    status, answer = await exchange(port, request)
    assert status == 413 and b'"code":"body_too_large"' in answer


async def test_a_body_that_grows_too_large_is_refused(port: int) -> None:
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    request = request_of("POST", "/v1/result", {"transfer-encoding": "chunked"}) + chunk * 2 + b"0\r\n\r\n"
    status, answer = await exchange(port, request)
    assert status == 413 and b'"code":"body_too_large"' in answer


async def test_a_large_signed_body_is_taken(api: Api, port: int) -> None:
    events = [{"name": "x", "data": "y" * 900_000} for _ in range(4)]
    body = json.dumps({"type": "events", "workspace": as_json(SHOP), "events": events}).encode()
    status, answer = await exchange(port, request_of("POST", "/v1/events", signed_headers(api.keys[SHOP], SHOP, body), body))
    assert status == 200, answer


async def test_strangers_to_peoples_routes_are_refused_before_their_body(port: int) -> None:
    request = request_of("POST", "/v1/apps/shop/acc/events", {"content-length": "5000000"})
    status, _ = await exchange(port, request)
    assert status == 401


@pytest.mark.parametrize(
    "request_bytes",
    [
        request_of("TRACE", "/v1/events", {}),
        request_of("POST", "/v1/events?type=x#y", {}),
        request_of("GET", "/%ff%fe", {}),
        request_of("GET", "/v1/apps/..%2f..%2fetc/acc/runs", {}),
        request_of("POST", "//v1//events", {}),
        request_of("GET", "/v1/apps", {"authorization": "Bearer \u00e9"}),
        request_of("POST", "/v1/events", {"durable-workspace": "\u00e9/dev"}),
        b"GET /\xff HTTP/1.1\r\nhost: x\r\n\r\n",
        b"nonsense\r\n\r\n",
    ],
)
async def test_odd_http_is_a_4xx_and_the_server_goes_on(port: int, request_bytes: bytes) -> None:
    status, _ = await exchange(port, request_bytes)
    assert 300 <= status < 500
    assert (await exchange(port, request_of("GET", "/healthz", {})))[0] == 200


async def test_a_client_that_hangs_up_leaves_nothing_running(api: Api, port: int) -> None:
    body = json.dumps({"type": "result", "workspace": as_json(SHOP), "run_id": "01990a3c-7d1e-7c3a-9b52-6f1f0e7f9a10"}).encode()
    for _ in range(3):
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(request_of("POST", "/v1/result", signed_headers(api.keys[SHOP], SHOP, body), body)[:-10])
        await stream.aclose()
    assert (await exchange(port, request_of("GET", "/healthz", {})))[0] == 200


def result_request(api: Api, run_id: str, wait_seconds: float = 0) -> bytes:
    message = {"type": "result", "workspace": as_json(SHOP), "run_id": run_id, "wait_seconds": wait_seconds}
    body = json.dumps(message).encode()
    return request_of("POST", "/v1/result", signed_headers(api.keys[SHOP], SHOP, body), body)


async def test_a_client_that_hangs_up_in_a_long_poll_ends_its_wait(api: Api, port: int) -> None:
    await api.sync(function("welcome"))
    run_id = UUID(await api.send("welcome.asked"))
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    await stream.send_all(result_request(api, str(run_id), 30))
    with trio.fail_after(10):
        while run_id not in api.services.hints._run_ends:
            await trio.sleep(0.001)
        await stream.aclose()
        while run_id in api.services.hints._run_ends:
            await trio.sleep(0.001)


async def test_requests_on_one_connection_are_answered_in_turn(api: Api, port: int) -> None:
    unknown = "01990a3c-7d1e-7c3a-9b52-6f1f0e7f9a10"
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        with trio.fail_after(10):
            for _ in range(3):
                await stream.send_all(result_request(api, unknown))
                answer = b""
                while not _is_whole(*answer.partition(b"\r\n\r\n")[::2]):
                    answer += await stream.receive_some(65536)
                assert answer.startswith(b"HTTP/1.1 404 ") and b"webhook-signature: v1," in answer
                assert answer.endswith(b"}") and answer.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize("encoding", ["content-length", "chunked"])
async def test_a_long_body_that_is_refused_at_its_beginning_holds_nothing_up(port: int, encoding: str) -> None:
    if encoding == "chunked":
        body = (b"10000\r\n" + b"x" * 0x10000 + b"\r\n") * 100 + b"0\r\n\r\n"
        request = request_of("POST", "/v1/result", {"transfer-encoding": "chunked"}) + body
    else:
        request = request_of("POST", "/v1/result", {}, b"x" * 6_000_000)
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream, trio.open_nursery() as nursery:

        async def send() -> None:
            with suppress(trio.BrokenResourceError):
                await stream.send_all(request)

        nursery.start_soon(send)
        answer = b""
        with trio.fail_after(10), suppress(trio.BrokenResourceError):
            while part := await stream.receive_some(65536):
                answer += part
        assert answer.startswith(b"HTTP/1.1 413 ") and b'"code":"body_too_large"' in answer


@pytest.mark.parametrize("path", [route.path for route in MACHINE_ROUTES])
async def test_machine_routes_refuse_other_methods_and_unsigned_bodies_with_the_headers_of_all_answers(
    port: int, path: str
) -> None:
    status, answer = await exchange(port, request_of("DELETE", path, {}))
    assert status == 405 and b"\r\nallow: P" in answer
    status, answer = await exchange(port, request_of("PUT" if path == "/v1/sync" else "POST", path, {}, b"{}"))
    assert status == 401 and b"\r\nwww-authenticate: Bearer\r\n" in answer
    for header in (b"content-type: application/json", b"cache-control: no-store", b"x-content-type-options: nosniff"):
        assert b"\r\n" + header + b"\r\n" in answer


async def test_closing_ends_the_idle_connections_of_machines_and_people(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "GRACEFUL_SECONDS_MAX", 1_000)
    closing = trio.Event()
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            [bind] = await nursery.start(serve_http, api.app, "127.0.0.1", 0, closing)
            streams = [await trio.open_tcp_stream("127.0.0.1", int(bind.rsplit(":", 1)[1])) for _ in range(2)]
            for stream, path in zip(streams, ("/v1/events", "/healthz"), strict=True):
                await stream.send_all(request_of("GET", path, {}))
                answer = b""
                while not _is_whole(*answer.partition(b"\r\n\r\n")[::2]):
                    answer += await stream.receive_some(65536)
            closing.set()
            for stream in streams:
                assert await stream.receive_some(65536) == b""
                await stream.aclose()


async def test_every_machine_route_and_no_other_is_served_without_hypercorn(api: Api) -> None:
    assert {route.path for route in ROUTES if api.app.serves_machine(route.path)} == {route.path for route in MACHINE_ROUTES}
