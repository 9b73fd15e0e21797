"""HTTP/1.1 with the engine as bytes: one connection's side of the conversation, without the socket.

Pure: `connections` and `sync_connections` bring and take the bytes. Knows no redirects, cookies or compression, since no answer
of the engine has them. The bytes of an answer are bounded.
"""

import base64
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final
from urllib.parse import unquote, urlsplit

import h11

from durable.wire import BODY_BYTES_MAX

_PORTS: Final = {"http": 80, "https": 443}


class ExchangeFailed(Exception):
    """No answer of HTTP came. The text says why, for people."""


class ConnectionWasClosed(ExchangeFailed):
    """A kept connection was closed before anything of the answer came, as servers do with idle ones. Try a fresh one."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where the engine listens. `headers` go with every request; a password of the URL is in them."""

    host: str
    port: int
    is_tls: bool
    path: str
    headers: tuple[tuple[str, str], ...] = field(repr=False)

    @classmethod
    @lru_cache(maxsize=16)
    def of(cls, url: str) -> "Address":
        """The parts of an `http` or `https` URL without query, which `keys` has checked."""
        parts = urlsplit(url)
        host = parts.hostname or ""
        try:
            name = f"[{host}]" if ":" in host else host.encode("idna").decode("ascii")
        except UnicodeError:
            raise ExchangeFailed(f"{host[:100]!r} is no name of a host") from None
        port = parts.port or _PORTS[parts.scheme]
        headers = [("host", name if port == _PORTS[parts.scheme] else f"{name}:{port}")]
        if parts.username is not None:
            words = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            headers.append(("authorization", "Basic " + base64.b64encode(words.encode()).decode("ascii")))
        return cls(host, port, parts.scheme == "https", parts.path, tuple(headers))


@dataclass(slots=True)
class Reply:
    """A whole answer. Names of headers are in lower case; one that came twice holds both values."""

    status: int
    headers: dict[str, str]
    body: bytes


class Exchange:
    """The requests and answers of one connection, one after the other."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._http = h11.Connection(h11.CLIENT)
        self._reply: Reply | None = None
        self._body: list[bytes] = []
        self._size_bytes = 0
        self._is_answered = False

    def ask(self, method: str, path: str, headers: dict[str, str], body: bytes) -> bytes:
        """The bytes of the next request."""
        self._reply, self._body, self._size_bytes, self._is_answered = None, [], 0, False
        length = ("content-length", str(len(body)))
        try:
            head = self._http.send(
                h11.Request(
                    method=method, target=self._address.path + path, headers=[*self._address.headers, *headers.items(), length]
                )
            )
            data = self._http.send(h11.Data(data=body)) if body else b""
            end = self._http.send(h11.EndOfMessage())
        except h11.LocalProtocolError as error:
            raise ExchangeFailed(f"the request can not be sent: {error}") from None
        return b"".join(part for part in (head, data, end) if part)

    def take(self, data: bytes) -> Reply | None:
        """Take what the engine sent, nothing when it closed the connection; the answer when it is complete."""
        self._is_answered = self._is_answered or bool(data)
        if not data and not self._is_answered:
            raise ConnectionWasClosed("the connection was closed without an answer")
        try:
            self._http.receive_data(data)
            return self._read()
        except h11.RemoteProtocolError as error:
            raise ExchangeFailed(f"what came is no whole answer of HTTP ({error})") from None

    @property
    def is_reusable(self) -> bool:
        """Whether the connection can take the next request; to be asked once after each answer."""
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            return False
        self._http.start_next_cycle()
        # Bytes beyond the answer are the answer to nothing that was asked.
        return not self._http.trailing_data[0]

    def _read(self) -> Reply | None:
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA or event is h11.PAUSED:
                return None
            if isinstance(event, h11.Response):
                self._reply = Reply(event.status_code, _headers(event), b"")
            elif isinstance(event, h11.Data):
                self._body.append(bytes(event.data))
                self._size_bytes += len(event.data)
                if self._size_bytes > BODY_BYTES_MAX:
                    raise ExchangeFailed(f"the answer has more than {BODY_BYTES_MAX:,} bytes, which is no answer of the engine")
            elif isinstance(event, h11.EndOfMessage):
                assert self._reply is not None
                self._reply.body = b"".join(self._body)
                return self._reply
            elif isinstance(event, h11.ConnectionClosed):
                raise ExchangeFailed("the connection was closed in the middle of the answer")


def _headers(response: h11.Response) -> dict[str, str]:
    found: dict[str, str] = {}
    for raw_name, raw_value in response.headers:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        found[name] = f"{found[name]}, {value}" if name in found else value
    return found
