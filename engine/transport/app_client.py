"""Signed calls to apps: asks for manifests and hands invocations over, and reads the signed lines that come back.

It uses httpcore, the core of httpx, directly: that is where the guard on addresses plugs in, and it saves a millisecond a call. It
follows no redirect, uses no proxy from the environment, and asks for identity encoding, so nothing can be inflated.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

import httpcore
import trio

from engine.transport.connections import Connections, host_header
from engine.transport.guard import GuardedBackend, TargetRefused
from protocol import signing
from protocol.calls import Ended, Invocation, Invoke, ManifestQuestion, Started
from protocol.limits import BODY_BYTES_MAX
from protocol.manifest import Manifest, Workspace
from protocol.messages import JsonRefused, MessageRefused, decode_invoked, decode_line, decode_manifest, encode
from protocol.requests import RefusedEntry

# An app sends an empty line every ten seconds; three of them missing is silence.
SILENCE_SECONDS_MAX = 30.0
CONNECT_SECONDS_MAX = 5.0
MANIFEST_SECONDS_MAX = 10.0
LINES_TYPE = "application/vnd.durable.lines"

Line = Started | Ended | RefusedEntry
Keys = Sequence[signing.Key]


@dataclass(frozen=True, slots=True)
class Finished:
    """The call came to its end; what was in it went to the caller line by line."""


@dataclass(frozen=True, slots=True)
class NotDelivered:
    """The app never took the call."""

    detail: str
    retry_after_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Died:
    """The app had the call, and it broke or brought what is no reply."""

    code: str
    message: str


CallResult = Finished | NotDelivered | Died


class AppClient:
    """Keeps connections to apps. One for the engine's life, used as a context."""

    def __init__(self, *, allow_local: bool, allowed_networks: Sequence[str] = ()) -> None:
        self._connections = Connections(
            tls=GuardedBackend(allow_local=allow_local, allowed_networks=allowed_networks),
            plain=GuardedBackend(allow_local=allow_local, allowed_networks=allowed_networks, only_listed=not allow_local),
        )

    async def __aenter__(self) -> AppClient:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._connections.__aexit__(*exc)

    async def ask_manifest(self, url: str, workspace: Workspace, keys: Keys) -> Manifest | NotDelivered | Died:
        """What the app at `url` offers."""
        request_id = signing.new_message_id()
        body = encode(ManifestQuestion(workspace))
        try:
            with trio.fail_after(MANIFEST_SECONDS_MAX):
                async with self._post(url, workspace, keys, request_id, body, silence=MANIFEST_SECONDS_MAX) as response:
                    raw = await _read_all(response)
        except _NOT_CONNECTED as error:
            return NotDelivered(_words(error))
        except _BROKEN as error:
            return Died("connection_lost", _words(error))
        except trio.TooSlowError:
            return Died("manifest_timeout", f"The manifest did not come within {MANIFEST_SECONDS_MAX:g} s.")
        except MessageRefused as error:
            return Died("bad_reply", f"The manifest can not be read: {error}")
        if (refused := _refused(response, raw)) is not None:
            return refused
        try:
            _verify_reply(response, keys, request_id, raw)
            return decode_manifest(raw)
        except signing.SignatureError as error:
            return Died("bad_signature", f"The reply's signature does not fit: {error}")
        except (JsonRefused, MessageRefused) as error:
            return Died("bad_reply", f"The manifest can not be read: {error}")

    async def invoke(
        self,
        url: str,
        workspace: Workspace,
        keys: Keys,
        invocations: list[Invocation],
        on_line: Callable[[Line], Awaitable[None]],
    ) -> CallResult:
        """Hand invocations over; `on_line` gets each line of the reply as it comes, verified and decoded."""
        request_id = signing.new_message_id()
        body = encode(Invoke(workspace, invocations))
        is_answered = False
        try:
            async with self._post(url, workspace, keys, request_id, body, silence=SILENCE_SECONDS_MAX) as response:
                is_answered = True
                if response.status != 200:
                    return _refused(response, await _read_all(response)) or Finished()
                if _header(response, b"content-type").partition(";")[0].strip() != LINES_TYPE:
                    await self._plain_reply(response, keys, request_id, on_line)
                    return Finished()
                await self._lines(response, keys, request_id, on_line)
                return Finished()
        except _NOT_CONNECTED as error:
            return NotDelivered(_words(error))
        except _BROKEN as error:
            what = "The connection to the app was lost" if is_answered else "The app took the call and did not answer"
            return Died("connection_lost", f"{what}: {_words(error)}")
        except signing.SignatureError as error:
            return Died("bad_signature", f"The reply's signature does not fit: {error}")
        except (JsonRefused, MessageRefused) as error:
            return Died("bad_reply", f"The app's reply can not be used: {error}")

    async def _plain_reply(
        self,
        response: httpcore.Response,
        keys: Keys,
        request_id: str,
        on_line: Callable[[Line], Awaitable[None]],
    ) -> None:
        raw = await _read_all(response)
        _verify_reply(response, keys, request_id, raw)
        ended, refused = decode_invoked(raw)
        lines: list[Line] = [*ended, *refused]
        for line in lines:
            await on_line(line)

    async def _lines(
        self,
        response: httpcore.Response,
        keys: Keys,
        request_id: str,
        on_line: Callable[[Line], Awaitable[None]],
    ) -> None:
        # Joined once a line: adding each chunk to what came before would copy a large line as often as it has chunks.
        parts: list[bytes] = []
        size_bytes = 0
        async for chunk in response.aiter_stream():
            first, *others = chunk.split(b"\n")
            parts.append(first)
            size_bytes += len(first)
            for other in others:
                line = b"".join(parts)
                parts, size_bytes = [other], len(other)
                if line.strip():
                    text = signing.verify_line(keys, request_id, line, time.time())
                    await on_line(decode_line(text))
            if size_bytes > BODY_BYTES_MAX:
                raise MessageRefused("too_large", f"a line has more than {BODY_BYTES_MAX:,} bytes")

    def _post(
        self, url: str, workspace: Workspace, keys: Keys, request_id: str, body: bytes, *, silence: float
    ) -> AbstractAsyncContextManager[httpcore.Response]:
        sent_at = int(time.time())
        headers = [
            (b"host", host_header(url)),
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"accept-encoding", b"identity"),
            (b"user-agent", b"durable"),
            (b"durable-workspace", str(workspace).encode()),
            (b"webhook-id", request_id.encode()),
            (b"webhook-timestamp", str(sent_at).encode()),
            (b"webhook-signature", signing.sign(keys, request_id, sent_at, body).encode()),
        ]
        timeouts = {"connect": CONNECT_SECONDS_MAX, "read": silence, "write": SILENCE_SECONDS_MAX}
        return self._connections.post(url, headers, body, timeouts)


_NOT_CONNECTED = (
    httpcore.ConnectError,
    httpcore.ConnectTimeout,
    httpcore.UnsupportedProtocol,
    TargetRefused,
)
_BROKEN = (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError)


async def _read_all(response: httpcore.Response) -> bytes:
    chunks: list[bytes] = []
    size_bytes = 0
    async for chunk in response.aiter_stream():
        size_bytes += len(chunk)
        if size_bytes > BODY_BYTES_MAX:
            raise MessageRefused("too_large", f"the reply has more than {BODY_BYTES_MAX:,} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


def _verify_reply(response: httpcore.Response, keys: Keys, request_id: str, raw: bytes) -> None:
    if _header(response, b"webhook-id") != signing.reply_id(request_id):
        raise signing.SignatureError("bad_id", "it does not answer this request (webhook-id)")
    signing.verify(
        keys,
        _header(response, b"webhook-id"),
        _header(response, b"webhook-timestamp"),
        _header(response, b"webhook-signature"),
        raw,
        time.time(),
    )


def _refused(response: httpcore.Response, raw: bytes) -> NotDelivered | Died | None:
    """What an answer other than 200 means. Its body is not repeated: it may come from anywhere."""
    status = response.status
    if status == 200:
        return None
    if status >= 500 and status not in (502, 503, 504):
        return Died("app_error", f"The app answered with status {status}.")
    if 300 <= status < 400:
        return NotDelivered(f"The app answered with a redirect (status {status}); give its final URL.")
    hint = " Its signing key may differ from this workspace's." if status == 401 else ""
    return NotDelivered(f"The app answered with status {status}.{hint}", _retry_after(response))


def _retry_after(response: httpcore.Response) -> float | None:
    """Seconds that the app asks for, within reason; a date or nonsense is none."""
    text = _header(response, b"retry-after")
    return min(max(float(text), 0.25), 300.0) if text.isascii() and text.isdigit() and len(text) < 10 else None


def _header(response: httpcore.Response, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in response.headers if key.lower() == name), "")


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
