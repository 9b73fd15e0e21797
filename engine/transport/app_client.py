"""Signed calls to apps: asks for manifests and hands invocations over, and reads the signed lines that come back.

It follows no redirect, uses no proxy from the environment, and asks for identity encoding, so nothing can be inflated.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import trio

from engine.transport.app_url import AppUrl, UrlRefused, parse_app_url
from engine.transport.connections import Connections
from engine.transport.guard import AddressGuard, NotConnected, TargetRefused
from engine.transport.http_connection import ConnectionLost, HttpConnection
from engine.transport.http_reply import ReplyHead
from protocol import signing
from protocol.calls import Ended, Invocation, Invoke, ManifestQuestion, Started
from protocol.limits import BODY_BYTES_MAX
from protocol.manifest import Manifest, Workspace
from protocol.messages import JsonRefused, MessageRefused, decode_invoked, decode_line, decode_manifest, encode
from protocol.requests import RefusedEntry

# An app sends an empty line every ten seconds; three of them missing is silence.
SILENCE_SECONDS_MAX = 30.0
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
    """The app had the call, and it broke or brought what is no reply. `is_answered`: something of a reply came."""

    code: str
    message: str
    is_answered: bool = True


CallResult = Finished | NotDelivered | Died


def _ignore() -> None:
    pass


class AppClient:
    """Keeps connections to apps. One for the engine's life, used as a context. `tls_context`: other certificates than the common ones."""

    def __init__(
        self, *, allow_local: bool, allowed_networks: Sequence[str] = (), tls_context: ssl.SSLContext | None = None
    ) -> None:
        self._connections = Connections(
            tls=AddressGuard(allow_local=allow_local, allowed_networks=allowed_networks),
            plain=AddressGuard(allow_local=allow_local, allowed_networks=allowed_networks, only_listed=not allow_local),
            tls_context=tls_context,
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
                app_url = parse_app_url(url)
                async with self._connections.use(app_url) as connection:
                    head = await connection.ask(
                        _request_head(app_url, workspace, keys, request_id, body), body, MANIFEST_SECONDS_MAX
                    )
                    raw = await _read_all(connection, MANIFEST_SECONDS_MAX)
        except (UrlRefused, NotConnected, TargetRefused) as error:
            return NotDelivered(str(error))
        except ConnectionLost as error:
            return Died("connection_lost", str(error))
        except trio.TooSlowError:
            return Died("manifest_timeout", f"The manifest did not come within {MANIFEST_SECONDS_MAX:g} s.")
        except MessageRefused as error:
            return Died("bad_reply", f"The manifest can not be read: {error}")
        if (refused := _refused(head)) is not None:
            return refused
        try:
            _verify_reply(head, keys, request_id, raw)
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
        on_line: Callable[[Line], None],
        on_answer: Callable[[], None] = _ignore,
    ) -> CallResult:
        """Hand invocations over; `on_line` gets each line of the reply as it comes, verified and decoded. `on_answer` is told of the
        first sign of a reply.
        """
        request_id = signing.new_message_id()
        body = encode(Invoke(workspace, invocations))
        is_answered = False
        try:
            app_url = parse_app_url(url)
            async with self._connections.use(app_url) as connection:
                head = await connection.ask(_request_head(app_url, workspace, keys, request_id, body), body, SILENCE_SECONDS_MAX)
                is_answered = True
                on_answer()
                if head.status != 200:
                    await _read_all(connection, SILENCE_SECONDS_MAX)
                    return _refused(head) or Finished()
                if head.headers.get("content-type", "").partition(";")[0].strip() != LINES_TYPE:
                    raw = await _read_all(connection, SILENCE_SECONDS_MAX)
                    _verify_reply(head, keys, request_id, raw)
                    for lines in decode_invoked(raw):
                        for line in lines:
                            on_line(line)
                    return Finished()
                await _read_lines(connection, keys, request_id, on_line)
                return Finished()
        except (UrlRefused, NotConnected, TargetRefused) as error:
            return NotDelivered(str(error))
        except ConnectionLost as error:
            what = "The connection to the app was lost" if is_answered else "The app took the call and did not answer"
            return Died("connection_lost", f"{what}: {error}", is_answered)
        except signing.SignatureError as error:
            return Died("bad_signature", f"The reply's signature does not fit: {error}")
        except (JsonRefused, MessageRefused) as error:
            return Died("bad_reply", f"The app's reply can not be used: {error}")


def _request_head(url: AppUrl, workspace: Workspace, keys: Keys, request_id: str, body: bytes) -> bytes:
    sent_at = int(time.time())
    return (
        f"POST {url.target} HTTP/1.1\r\nhost: {url.host_header}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\naccept-encoding: identity\r\nuser-agent: durable\r\n"
        f"durable-workspace: {workspace}\r\nwebhook-id: {request_id}\r\nwebhook-timestamp: {sent_at}\r\n"
        f"webhook-signature: {signing.sign(keys, request_id, sent_at, body)}\r\n\r\n"
    ).encode("ascii")


async def _read_lines(connection: HttpConnection, keys: Keys, request_id: str, on_line: Callable[[Line], None]) -> None:
    # Joined once a line: adding each piece to what came before would copy a large line as often as it has pieces.
    parts: list[bytes] = []
    size_bytes = 0
    while piece := await connection.read(SILENCE_SECONDS_MAX):
        first, *others = piece.split(b"\n")
        parts.append(first)
        size_bytes += len(first)
        now = time.time()
        for other in others:
            line = parts[0] if len(parts) == 1 else b"".join(parts)
            parts, size_bytes = [other], len(other)
            if line and not line.isspace():
                on_line(decode_line(signing.verify_line(keys, request_id, line, now)))
        if size_bytes > BODY_BYTES_MAX:
            raise MessageRefused("too_large", f"a line has more than {BODY_BYTES_MAX:,} bytes")


async def _read_all(connection: HttpConnection, silence_seconds_max: float) -> bytes:
    pieces: list[bytes] = []
    size_bytes = 0
    while piece := await connection.read(silence_seconds_max):
        size_bytes += len(piece)
        if size_bytes > BODY_BYTES_MAX:
            raise MessageRefused("too_large", f"the reply has more than {BODY_BYTES_MAX:,} bytes")
        pieces.append(piece)
    return b"".join(pieces)


def _verify_reply(head: ReplyHead, keys: Keys, request_id: str, raw: bytes) -> None:
    headers = head.headers
    if headers.get("webhook-id") != signing.reply_id(request_id):
        raise signing.SignatureError("bad_id", "it does not answer this request (webhook-id)")
    signing.verify(
        keys, headers["webhook-id"], headers.get("webhook-timestamp"), headers.get("webhook-signature"), raw, time.time()
    )


def _refused(head: ReplyHead) -> NotDelivered | Died | None:
    """What an answer other than 200 means. Its body is not repeated: it may come from anywhere."""
    status = head.status
    if status == 200:
        return None
    if status >= 500 and status not in (502, 503, 504):
        return Died("app_error", f"The app answered with status {status}.")
    if 300 <= status < 400:
        return NotDelivered(f"The app answered with a redirect (status {status}); give its final URL.")
    hint = " Its signing key may differ from this workspace's." if status == 401 else ""
    return NotDelivered(f"The app answered with status {status}.{hint}", _retry_after(head))


def _retry_after(head: ReplyHead) -> float | None:
    """Seconds that the app asks for, within reason; a date or nonsense is none."""
    text = head.headers.get("retry-after", "")
    return min(max(float(text), 0.25), 300.0) if text.isascii() and text.isdigit() and len(text) < 10 else None
