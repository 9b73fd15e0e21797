"""Calls over real sockets: what is kept, what is closed, TLS with the right name, and scopes that are cancelled at any moment."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from msgspec import Raw

from engine.transport import app_client, connections
from engine.transport.app_client import AppClient, CallResult, Died, Finished, Line, NotDelivered
from engine.transport.app_url import UrlRefused, parse_app_url
from protocol import signing
from protocol.calls import Ended, Event, Invocation, Invoked, Started
from protocol.manifest import Workspace
from protocol.messages import encode
from protocol.ops import Yield
from tests.engine.nursery.stand import App, AppCall, a_server, until

DEV = Workspace("shop", "dev")
KEY = signing.Key.parse(signing.new_key())


def invocation(number: int = 1, data: bytes = b"1") -> Invocation:
    at = datetime.datetime.now(datetime.UTC)
    return Invocation(f"01990000-0000-7000-8000-{number:012}", 1, 1, "f", Event("e", "go", Raw(data), at), 30.0)


async def call(apps: AppClient, url: str, lines: list[Line], *invocations: Invocation) -> CallResult:
    return await apps.invoke(url, DEV, [KEY], list(invocations or [invocation()]), lines.append)


async def test_lines_come_in_order_and_the_connection_serves_the_next_call() -> None:
    app = App(AppCall.complete, KEY)
    async with AppClient(allow_local=True) as apps, a_server(app.serve) as url:
        for _ in range(3):
            lines: list[Line] = []
            assert await call(apps, url, lines, invocation(1), invocation(2)) == Finished()
            assert [type(line) for line in lines] == [Started, Started, Ended, Ended]
        assert app.connections == 1


async def test_an_idle_connection_that_the_app_closed_is_not_used() -> None:
    async def answer(each: AppCall) -> None:
        await each.complete()
        await each.stream.aclose()

    app = App(answer, KEY)
    async with AppClient(allow_local=True) as apps, a_server(app.serve) as url:
        for _ in range(3):
            assert await call(apps, url, []) == Finished()
            await until(lambda: app.closed == app.connections)
        assert app.connections == 3


async def test_connections_to_an_app_that_is_called_no_more_are_closed_by_calls_to_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connections, "KEEP_SECONDS", 0.05)
    former, present = App(AppCall.complete, KEY), App(AppCall.complete, KEY)
    async with AppClient(allow_local=True) as apps, a_server(former.serve) as former_url, a_server(present.serve) as url:
        assert await call(apps, former_url, []) == Finished()
        assert isinstance(await call(apps, "http://127.0.0.1:1/", []), NotDelivered)
        for _ in range(2):
            await trio.sleep(0.06)
            assert await call(apps, url, []) == Finished()
        await until(lambda: former.closed == former.connections == 1)
        assert apps._connections.idle_count == 1 and len(apps._connections._idle) == 1


async def test_lines_in_one_plain_signed_reply_are_read_too() -> None:
    async def answer(each: AppCall) -> None:
        ends = [Ended(one.run_id, 1, 0, [Yield()]) for one in each.invocations]
        body = encode(Invoked(ends))
        reply_id, now = signing.reply_id(each.request_id), int(time.time())
        await each.stream.send_all(
            f"HTTP/1.1 200 OK\r\nwebhook-id: {reply_id}\r\nwebhook-timestamp: {now}\r\ncontent-length: {len(body)}\r\n"
            f"webhook-signature: {signing.sign([KEY], reply_id, now, body)}\r\n\r\n".encode()
            + body
        )

    async with AppClient(allow_local=True) as apps, a_server(App(answer, KEY).serve) as url:
        lines: list[Line] = []
        assert await call(apps, url, lines) == Finished()
        assert [type(line) for line in lines] == [Ended]


async def test_an_app_that_refuses_before_it_has_read_the_call_is_heard() -> None:
    async def answer(stream: trio.SocketStream) -> None:
        await stream.receive_some(100)
        await stream.send_all(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n")
        await stream.send_eof()
        while await stream.receive_some():
            pass

    large = invocation(data=b'"' + b"x" * 10_000_000 + b'"')
    async with AppClient(allow_local=True) as apps, a_server(answer) as url:
        answered = await call(apps, url, [], large)
        assert isinstance(answered, NotDelivered) and "413" in answered.detail


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"\x15\x03\x01",
        b"HTTP/1.1 200 OK\r\ncontent-type: application/vnd.durable.lines\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-type: application/vnd.durable.lines\r\n\r\nline\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}",
        b"\xff" * 200_000,
        b"HTTP/1.1 200 OK\r\nwebhook-id: \xff\r\ncontent-length: 0\r\n\r\n",
    ],
)
async def test_garbage_is_a_death_of_the_call_and_nothing_worse(reply: bytes) -> None:
    async def answer(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(reply)
        await stream.aclose()

    async with AppClient(allow_local=True) as apps, a_server(answer) as url:
        assert isinstance(await call(apps, url, []), Died)


async def test_an_app_that_is_silent_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_client, "SILENCE_SECONDS_MAX", 0.1)

    async def begin(each: AppCall) -> None:
        await each.begin()
        await trio.sleep_forever()

    async def nothing(each: AppCall) -> None:
        await trio.sleep_forever()

    for answer, is_answered in ((begin, True), (nothing, False)):
        async with AppClient(allow_local=True) as apps, a_server(App(answer, KEY).serve) as url:
            died = await call(apps, url, [])
            assert isinstance(died, Died) and died.is_answered == is_answered and "0.1 s" in died.message


async def test_a_call_that_is_cancelled_at_any_moment_leaves_no_connection() -> None:
    """Each turn of the loop in which a call may stand is cancelled once."""
    app = App(AppCall.complete, KEY)
    was_cancelled = was_finished = 0
    async with AppClient(allow_local=True) as apps, a_server(app.serve) as url:
        for turns in range(60):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_cancel_after, scope, turns)
                    await call(apps, url, [], invocation(1), invocation(2))
                    was_finished += 1
                    nursery.cancel_scope.cancel()
            was_cancelled += scope.cancelled_caught
            assert apps._connections.idle_count <= 1
            await until(lambda: app.connections - app.closed <= apps._connections.idle_count)
        assert was_cancelled > 3 and was_finished > 3


async def _cancel_after(scope: trio.CancelScope, turns: int) -> None:
    for _ in range(turns):
        await trio.lowlevel.checkpoint()
    scope.cancel()


@pytest.mark.parametrize(
    "url", ["ftp://a/", "http:///x", "http://a b/", "http://a/ b", "http://[::1/", "http://a:99999/", "http://\udcff/"]
)
async def test_a_url_that_can_not_be_called_is_a_sentence(url: str) -> None:
    with pytest.raises(UrlRefused):
        parse_app_url(url)
    async with AppClient(allow_local=True) as apps:
        assert isinstance(await call(apps, url, []), NotDelivered)


def test_a_url_keeps_its_path_and_its_secrets_to_itself() -> None:
    url = parse_app_url("https://user:word@Shop.example:8443/api/durable?x=1#there")
    assert (url.origin.host, url.origin.port, url.target, url.host_header) == (
        "shop.example", 8443, "/api/durable?x=1", "shop.example:8443",
    )  # fmt: skip
    assert parse_app_url("http://[::1]/").host_header == "[::1]" and parse_app_url("https://a").target == "/"


async def test_tls_verifies_the_name_that_was_called(tmp_path: Path) -> None:
    trusted = _certificate(tmp_path, "localhost")
    other = _certificate(tmp_path, "elsewhere.example")
    for name, serves, is_good in (("localhost", trusted, True), ("127.0.0.1", trusted, False), ("localhost", other, False)):
        app = App(AppCall.complete, KEY)
        client_context = ssl.create_default_context(cafile=str(serves))
        client = AppClient(allow_local=False, allowed_networks=("127.0.0.0/8", "::1/128"), tls_context=client_context)
        async with client as apps, a_server(partial(_serve_tls, app.serve, serves)) as url:
            port = url.rpartition(":")[2]
            answers = [await call(apps, f"https://{name}:{port}", []) for _ in range(2)]
            if is_good:
                assert answers == [Finished(), Finished()] and app.connections == 1
            else:
                assert all(isinstance(answer, NotDelivered) and "TLS" in answer.detail for answer in answers), answers


async def test_a_stranger_to_tls_is_not_called() -> None:
    async def answer(stream: trio.SocketStream) -> None:
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with AppClient(allow_local=False, allowed_networks=("127.0.0.0/8",)) as apps, a_server(answer) as url:
        assert isinstance(await call(apps, url.replace("http:", "https:"), []), NotDelivered)


async def _serve_tls(serve: Callable[[trio.SocketStream], Awaitable[None]], pem: Path, stream: trio.SocketStream) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pem)
    await serve(trio.SSLStream(stream, context, server_side=True, https_compatible=True))  # type: ignore[arg-type]


def _certificate(place: Path, name: str) -> Path:
    """A self-signed certificate with its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name), x509.IPAddress(ipaddress.ip_address("10.9.8.7"))]), False)
        .sign(key, hashes.SHA256())
    )
    pem = place / f"{name}.pem"
    secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    pem.write_bytes(secret + certificate.public_bytes(serialization.Encoding.PEM))
    return pem
