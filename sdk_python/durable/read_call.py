"""Decides about one HTTP request to the serve URL: who asks, whether to believe it, and what to answer.

Pure but for the memory of ids: the servers (`http_asgi`, `http_wsgi`) bring bytes and act on the decision. Nothing of
the body is looked at before its signature was verified.
"""

import logging
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from msgspec import Struct

from durable.errors import ConfigurationError
from durable.keys import Settings
from durable.lease import LEASE_MARGIN_SECONDS
from durable.replay_memory import ReplayMemory
from durable.signing import Key, SignatureRefused, reply_id, sign, sign_lines, verify
from durable.wire import (
    BODY_BYTES_MAX,
    Ended,
    Invocation,
    ManifestQuestion,
    Started,
    UnknownFunctionOp,
    WireRefusal,
)
from durable.wire_codec import WireFault, decode_call, encode

if TYPE_CHECKING:
    from durable.app import App

logger: Final = logging.getLogger("durable")

Header: TypeAlias = tuple[str, str]

LINES_TYPE: Final = "application/vnd.durable.lines"
_SINGLE: Final = ("webhook-id", "webhook-timestamp", "webhook-signature", "durable-workspace")
_PLACE = re.compile(r" - at `\$([^`]*)`$")


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer."""

    status: int
    headers: list[Header]
    body: bytes


@dataclass(frozen=True, slots=True)
class InvokeCall:
    """A verified call with invocations. The leases count from `received_at`, monotonic; a call read late has it in the past."""

    request_id: str
    keys: tuple[Key, ...]
    invocations: list[Invocation]
    received_at: float

    def headers(self) -> list[Header]:
        """The head of the streamed reply; it carries no signature, each line does."""
        return [
            ("content-type", LINES_TYPE),
            # Compression would hold lines back until enough of them are there.
            ("cache-control", "no-transform"),
            ("x-accel-buffering", "no"),
            ("webhook-id", reply_id(self.request_id)),
        ]

    def started_lines(self) -> bytes:
        """The first lines, all at once."""
        return self._sign([Started(invocation.run_id, invocation.generation) for invocation in self.invocations])

    def ended_lines(self, ended: Sequence[Ended]) -> bytes:
        """The lines of ends, signed now."""
        return self._sign(ended)

    def _sign(self, messages: Sequence[Started | Ended]) -> bytes:
        return sign_lines(self.keys[0], self.request_id, int(time.time()), map(encode, messages))


class CallReader:
    """Reads the calls to one app. Safe to use from any thread."""

    def __init__(self, app: "App") -> None:
        self._app = app
        self._replays = ReplayMemory()

    def read(self, method: str, headers: Iterable[Header], body: bytes, received_at: float) -> Answer | InvokeCall:
        """What to do about a request. Names of headers are in lower case."""
        if method != "POST":
            return METHOD_NOT_ALLOWED
        try:
            settings = self._app.settings()
        except ConfigurationError as error:
            logger.error("a call can not be answered: %s", error)
            return _refusal(503, "not_configured", "The app is not configured; its log says what to set.")
        words = _single_headers(headers)
        is_star = words["durable-workspace"] == f"*/{settings.workspace.env}"
        if not is_star and words["durable-workspace"] != str(settings.workspace):
            return _wrong_workspace(words["durable-workspace"])
        try:
            message_id = self._verify(settings, words, body)
        except SignatureRefused as refused:
            logger.warning("a call was refused: %s", refused)
            return _refusal(
                401,
                "bad_signature",
                "The request is not signed with a key of this app, or not for now.",
                "Check DURABLE_SIGNING_KEY and DURABLE_ENV of the app and both clocks; the app's log has the reason.",
            )
        # A process that stood still reads the call late; its leases have run since the engine signed it.
        age_seconds = time.time() - int(words["webhook-timestamp"] or 0)
        if age_seconds > LEASE_MARGIN_SECONDS:
            received_at -= age_seconds
        return self._answer(settings, message_id, body, is_star=is_star, received_at=received_at)

    def _verify(self, settings: Settings, words: dict[str, str | None], body: bytes) -> str:
        message_id = words["webhook-id"]
        verify(settings.keys, message_id, words["webhook-timestamp"], words["webhook-signature"], body, time.time())
        if message_id is None or not self._replays.is_new(message_id):
            raise SignatureRefused("its webhook-id was seen before")
        return message_id

    def _answer(
        self, settings: Settings, message_id: str, body: bytes, *, is_star: bool, received_at: float
    ) -> Answer | InvokeCall:
        """The answer to a message that is the engine's."""
        keys = settings.keys
        try:
            message = decode_call(body)
        except WireFault as fault:
            place = _place_of(str(fault))
            return _signed(400, WireRefusal(fault.code, str(fault), place=place), keys, message_id)
        is_manifest = isinstance(message, ManifestQuestion)
        # The header is not signed; the body is, and the two must say the same.
        said, wanted = message.workspace, settings.workspace
        if said.env != wanted.env or said.app != ("*" if is_star else wanted.app) or (is_star and not is_manifest):
            return _signed(401, _wrong_workspace_words(), keys, message_id)
        if isinstance(message, ManifestQuestion):
            return _signed(200, self._app.manifest(), keys, message_id)
        return InvokeCall(message_id, keys, message.invocations, received_at)


def unknown_function(invocation: Invocation) -> Ended:
    """The line for an invocation of a function that this app does not have."""
    known = max((entry.position for entry in invocation.steps), default=0)
    return Ended(invocation.run_id, invocation.generation, known, [UnknownFunctionOp()])


METHOD_NOT_ALLOWED: Final = Answer(405, [("allow", "POST"), ("content-length", "0")], b"")


def too_large() -> Answer:
    """The answer to a body that is not even read to its end."""
    return _refusal(
        413,
        "too_large",
        f"The body has more than {BODY_BYTES_MAX} bytes.",
        "Send fewer invocations.",
    )


def _single_headers(headers: Iterable[Header]) -> dict[str, str | None]:
    """The headers that the signature is about. One that comes twice could mean two things, so it means nothing good."""
    found: dict[str, str | None] = dict.fromkeys(_SINGLE)
    for name, value in headers:
        if name in found:
            found[name] = value if found[name] is None else ""
    return found


def _wrong_workspace(said: str | None) -> Answer:
    logger.warning("a call was refused: it is for the workspace %.100r", said)
    words = _wrong_workspace_words()
    # Unsigned: nobody knows who asks, nor with which key the answer would be read.
    return _refusal(401, words.code, words.message, words.hint)


def _wrong_workspace_words() -> WireRefusal:
    return WireRefusal(
        "wrong_workspace",
        "The call is for another workspace than this app's.",
        "Check the app's name, DURABLE_ENV and the URL under which the engine knows it.",
    )


def _refusal(status: int, code: str, message: str, hint: str | None = None) -> Answer:
    body = encode(WireRefusal(code, message, hint))
    return Answer(status, [("content-type", "application/json"), ("content-length", str(len(body)))], body)


def _signed(status: int, message: Struct, keys: Sequence[Key], request_id: str) -> Answer:
    body = encode(message)
    answer_id, sent_at = reply_id(request_id), int(time.time())
    headers = [
        ("content-type", "application/json"),
        ("content-length", str(len(body))),
        ("cache-control", "no-transform"),
        ("webhook-id", answer_id),
        ("webhook-timestamp", str(sent_at)),
        ("webhook-signature", sign(keys, answer_id, sent_at, body)),
    ]
    return Answer(status, headers, body)


def _place_of(fault: str) -> str | None:
    """The JSON pointer in the words of the decoder, unless it does not know the index itself."""
    found = _PLACE.search(fault.removesuffix("."))
    if found is None or "..." in found[1]:
        return None
    return re.sub(r"\.|\[", "/", found[1]).replace("]", "")
