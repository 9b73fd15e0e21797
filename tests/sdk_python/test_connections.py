"""Connections to the engine: kept, closed by the other side, cut in the middle, silent, cancelled, and TLS that is verified."""

import datetime
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from durable import connections, sync_connections
from durable.connections import Connections
from durable.http_exchange import Address, ConnectionWasClosed, ExchangeFailed, Reply
from durable.sync_connections import SyncConnections
from tests.sdk_python.app_servers import listening

GOOD = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
# Serves the nth connection (from 0): gets its stream, may read requests and write what it likes.
Serve = Callable[[int, Any], None]


@contextmanager
def server(serve: Serve, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    listener = listening()

    def accept() -> None:
        for number in range(1000):
            try:
                stream, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=one, args=(number, stream), daemon=True).start()

    def one(number: int, stream: socket.socket) -> None:
        with stream, suppress(OSError):
            serve(number, tls.wrap_socket(stream, server_side=True) if tls else stream)

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"{'https' if tls else 'http'}://localhost:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def read_request(stream: Any) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        part = stream.recv(65536)
        if not part:
            raise OSError("gone")
        data += part
    return data


def answering(*answers: bytes) -> Serve:
    """Gives these answers on each connection, then closes it."""

    def serve(number: int, stream: Any) -> None:
        for answer in answers:
            read_request(stream)
            stream.sendall(answer)

    return serve


class Asker:
    """Asks in one of three ways, always with the same pool."""

    def __init__(self, way: str) -> None:
        self.way = way

    def run(self, main: Callable[[Callable[..., Awaitable[Reply]]], Awaitable[Any]]) -> Any:
        async def work() -> Any:
            pool, plain = Connections(), SyncConnections()

            async def ask(url: str, **named: Any) -> Reply:
                if self.way == "plain":
                    return plain.ask(url, "POST", "/v1/x", {}, b"{}", **named)
                return await pool.ask(url, "POST", "/v1/x", {}, b"{}", **named)

            try:
                with anyio.fail_after(20):
                    return await main(ask)
            finally:
                await pool.close()
                plain.close()

        return anyio.run(work, backend="asyncio" if self.way == "plain" else self.way)


@pytest.fixture(params=["asyncio", "trio", "plain"])
def asker(request: pytest.FixtureRequest) -> Asker:
    return Asker(request.param)


def test_a_connection_is_kept_and_one_that_was_closed_meanwhile_is_told(asker: Asker) -> None:
    numbers: list[int] = []

    def serve(number: int, stream: Any) -> None:
        for _ in range(2):
            read_request(stream)
            numbers.append(number)
            stream.sendall(GOOD)

    async def main(ask: Any) -> None:
        with server(serve) as url:
            assert [(await ask(url)).body for _ in range(2)] == [b"ok", b"ok"]
            assert numbers == [0, 0]
            with pytest.raises(ConnectionWasClosed):
                await ask(url)
            assert (await ask(url, is_fresh=True)).status == 200
            assert numbers == [0, 0, 1]

    asker.run(main)


@pytest.mark.parametrize(
    "answer",
    [b"", b"HTTP/1.1 200 OK\r\ncontent-le", GOOD[:-1], b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n"],
)
def test_what_is_no_whole_answer_fails_and_its_connection_is_not_used_again(asker: Asker, answer: bytes) -> None:
    def serve(number: int, stream: Any) -> None:
        read_request(stream)
        stream.sendall(GOOD if number else answer)

    async def main(ask: Any) -> None:
        with server(serve) as url:
            with pytest.raises(ExchangeFailed) as failed:
                await ask(url)
            assert not isinstance(failed.value, ConnectionWasClosed)
            assert (await ask(url)).body == b"ok"

    asker.run(main)


def test_an_answer_that_is_too_large_is_not_read_to_its_end(asker: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("durable.http_exchange.BODY_BYTES_MAX", 1000)

    async def main(ask: Any) -> None:
        head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
        with server(answering(head + b"1f4\r\n" + b"x" * 500 + b"\r\n" + b"1f5\r\n" + b"x" * 501 + b"\r\n")) as url:
            with pytest.raises(ExchangeFailed, match="more than 1,000 bytes"):
                await ask(url)

    asker.run(main)


def test_a_silent_engine_is_left_after_a_while(asker: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "SILENCE_SECONDS_MAX", 0.1)
    monkeypatch.setattr(sync_connections, "SILENCE_SECONDS_MAX", 0.1)

    def serve(number: int, stream: Any) -> None:
        read_request(stream)
        stream.recv(1)  # until the client leaves

    async def main(ask: Any) -> None:
        with server(serve) as url:
            with pytest.raises(ExchangeFailed, match="nothing came"):
                await ask(url)

    asker.run(main)


@pytest.mark.parametrize("way", ["asyncio", "trio"])
def test_a_cancelled_request_leaves_no_connection_to_be_used(way: str) -> None:
    is_asked = threading.Event()
    numbers: list[int] = []

    def serve(number: int, stream: Any) -> None:
        read_request(stream)
        numbers.append(number)
        is_asked.set()
        if number == 0:
            stream.recv(1)  # until the client leaves
            return
        stream.sendall(GOOD)

    async def main(ask: Any) -> None:
        with server(serve) as url:
            async with anyio.create_task_group() as group:
                group.start_soon(ask, url)
                await anyio.to_thread.run_sync(is_asked.wait)
                group.cancel_scope.cancel()
            assert (await ask(url)).body == b"ok"
            assert numbers == [0, 1]

    Asker(way).run(main)


def tls_of(folder: Path, host: str) -> tuple[ssl.SSLContext, Path]:
    """A server's context with a certificate for this host, and the file of the certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path, key_path = folder / "certificate.pem", folder / "key.pem"
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    key_path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path, key_path)
    return context, path


@pytest.mark.parametrize("host", ["localhost", "elsewhere"])
@pytest.mark.parametrize("is_trusted", [True, False])
def test_a_certificate_must_be_trusted_and_for_this_host(
    asker: Asker, host: str, is_trusted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, certificate = tls_of(tmp_path, host)
    if is_trusted:
        trusting = ssl.create_default_context(cafile=str(certificate))
        monkeypatch.setattr(connections, "tls", lambda: trusting)
        monkeypatch.setattr(sync_connections, "tls", lambda: trusting)
    requests: list[bytes] = []

    def serve(number: int, stream: Any) -> None:
        for _ in range(2):
            requests.append(read_request(stream))
            stream.sendall(GOOD)

    async def main(ask: Any) -> None:
        with server(serve, context) as url:
            if is_trusted and host == "localhost":
                assert [(await ask(url)).body for _ in range(2)] == [b"ok", b"ok"]
            else:
                with pytest.raises(ExchangeFailed, match="certificate"):
                    await ask(url)
                assert requests == []

    asker.run(main)


def test_an_address_says_the_host_as_the_wire_wants_it() -> None:
    assert dict(Address.of("http://127.0.0.1:8288").headers) == {"host": "127.0.0.1:8288"}
    assert dict(Address.of("https://engine.example").headers) == {"host": "engine.example"}
    assert Address.of("https://engine.example/base").path == "/base"
    assert dict(Address.of("http://[::1]:80").headers) == {"host": "[::1]"} and Address.of("http://[::1]:80").host == "::1"
    assert dict(Address.of("http://bücher.example").headers) == {"host": "xn--bcher-kva.example"}
    address = Address.of("https://me:p%40ss@engine.example")
    assert dict(address.headers)["authorization"] == "Basic bWU6cEBzcw=="
    assert "bWU6cEBzcw" not in repr(address)
