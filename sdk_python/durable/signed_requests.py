"""A request to the engine as bytes and headers, and what its answer means. Pure: both clients send and time it.

Owns: a new webhook-id for every try, the check that an answer is the engine's and belongs to this very request, and
which exception a refusal becomes.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from durable.errors import EngineUnreachable, Refused
from durable.keys import Settings
from durable.signing import SignatureRefused, new_message_id, reply_id, sign, verify
from durable.version import VERSION
from durable.wire_codec import WireFault, decode_refusal

# Statuses that say nothing about the message: it may be taken a moment later.
BUSY_STATUSES: Final = frozenset({429, 502, 503, 504})
RETRY_AFTER_SECONDS_MAX: Final = 60.0


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """One try. `id` is its webhook-id."""

    id: str
    headers: dict[str, str]


def sign_request(settings: Settings, body: bytes) -> SignedRequest:
    """A new try of a message, signed now."""
    message_id = new_message_id()
    sent_at = int(time.time())
    headers = {
        "content-type": "application/json",
        # The signature is over the bytes as they are sent, so nothing may compress them on the way.
        "accept-encoding": "identity",
        "user-agent": f"durable-python/{VERSION}",
        "durable-workspace": str(settings.workspace),
        "webhook-id": message_id,
        "webhook-timestamp": str(sent_at),
        "webhook-signature": sign(settings.keys, message_id, sent_at, body),
    }
    return SignedRequest(message_id, headers)


def read_answer(settings: Settings, request: SignedRequest, status: int, headers: Mapping[str, str], body: bytes) -> bytes:
    """The body of a good answer, verified; EngineUnreachable or Refused for every other."""
    if status in BUSY_STATUSES:
        raise EngineUnreachable(
            f"The engine at {settings.url} is busy (status {status}).",
            retry_after_seconds=_read_retry_after(headers.get("retry-after")),
        )
    if 200 <= status < 300:
        _require_signed(settings, request, headers, body)
        return body
    if 400 <= status < 500:
        raise _refused(settings, status, body)
    raise EngineUnreachable(f"What answers at {settings.url} says {status}, which is no answer of the engine. Is it its address?")


def _require_signed(settings: Settings, request: SignedRequest, headers: Mapping[str, str], body: bytes) -> None:
    answer_id = headers.get("webhook-id")
    try:
        # A recorded answer to another request carries a good signature, but the other id.
        if answer_id != reply_id(request.id):
            raise SignatureRefused("it is not the answer to this request")
        verify(settings.keys, answer_id, headers.get("webhook-timestamp"), headers.get("webhook-signature"), body, time.time())
    except SignatureRefused as refused:
        raise EngineUnreachable(
            f"The answer from {settings.url} can not be trusted: {refused}. See that DURABLE_URL is the engine's address and "
            "DURABLE_SIGNING_KEY the key of this app and environment there."
        ) from None


def _refused(settings: Settings, status: int, body: bytes) -> Refused:
    # Refusals to strangers are not signed, and a refusal changes nothing here, so the words are taken as they are.
    try:
        words = decode_refusal(body)
    except WireFault:
        return Refused(
            f"http_{status}",
            f"{settings.url} answered with status {status}, not in the engine's words.",
            "See that DURABLE_URL is the engine's address.",
            status,
        )
    return Refused(words.code, words.message, words.hint, status, words.place)


def _read_retry_after(text: str | None) -> float | None:
    """Seconds; a date is not read, the usual pause then does."""
    if text is None or not text.isascii() or not text.isdigit():
        return None
    return min(float(text[:6]), RETRY_AFTER_SECONDS_MAX)
