"""Standard Webhooks signatures in both directions: sign a request, a reply or a line; verify before parsing.

Pure: the caller gives the time and the keys. Everything that is wrong with a message is a `SignatureRefused`; on
the wire that is always 401 `bad_signature`, since the reason would help only a stranger.
"""

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from hashlib import _Hash

AGE_SECONDS_MAX: Final = 300
SIGNATURES_MAX: Final = 16
# No signature entry is longer than 100 characters; more text than that is no signature header.
_HEADER_CHARACTERS_MAX: Final = SIGNATURES_MAX * 100
_SECRET_BYTES_MIN: Final = 24
_SECRET_BYTES_MAX: Final = 64

_INNER_PAD: Final = bytes(byte ^ 0x36 for byte in range(256))
_OUTER_PAD: Final = bytes(byte ^ 0x5C for byte in range(256))

# A dot in the id would let id and timestamp be cut in two ways.
_MESSAGE_ID = re.compile(r"[!-\-/-~]{1,256}")
_TIMESTAMP = re.compile(r"0|[1-9][0-9]{0,11}")
_ENTRY = re.compile(r"v1,([A-Za-z0-9+/]{43}=)|v(?!1,)[0-9]{1,3}[a-z]?,[A-Za-z0-9+/=]{1,100}")


class SignatureRefused(Exception):
    """The message is not from a holder of the key, or not for now. Do not parse it; answer 401. The text is for logs."""

    code: Final = "bad_signature"


class KeyRefused(ValueError):
    """The text is no signing key. The message says why and never repeats the key."""

    code: Final = "bad_key"


@dataclass(frozen=True, slots=True)
class Key:
    """A signing key. Its secret shows neither in `repr` nor in `str`."""

    secret: bytes = field(repr=False)
    # The two hashes of HMAC-SHA256 (RFC 2104) with the key in them: copying them costs half of what taking in the key again does.
    _inner: "_Hash" = field(init=False, repr=False, compare=False)
    _outer: "_Hash" = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # No secret is longer than a block of SHA-256, whose keys would be hashed first.
        block = self.secret.ljust(64, b"\0")
        object.__setattr__(self, "_inner", hashlib.sha256(block.translate(_INNER_PAD)))
        object.__setattr__(self, "_outer", hashlib.sha256(block.translate(_OUTER_PAD)))

    def signature(self, head: bytes, body: bytes) -> bytes:
        """The HMAC-SHA256 of head and body, as base64."""
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(head)
        inner.update(body)
        outer.update(inner.digest())
        return binascii.b2a_base64(outer.digest(), newline=False)

    @classmethod
    def parse(cls, text: str) -> "Key":
        """Read `whsec_<base64>`."""
        encoded = text.removeprefix("whsec_")
        if encoded == text:
            raise KeyRefused("A signing key begins with `whsec_`. Copy the whole key, prefix included.")
        try:
            secret = base64.b64decode(encoded.encode("ascii"), validate=True)
        except (binascii.Error, UnicodeEncodeError):
            raise KeyRefused("What follows `whsec_` is not base64. Copy the whole key, without spaces or quotes.") from None
        # One key has one text in every language: stray bits and missing padding are refused.
        if base64.b64encode(secret).decode("ascii") != encoded:
            raise KeyRefused("The base64 after `whsec_` is cut off or has stray bits at its end. Copy the whole key.")
        if not _SECRET_BYTES_MIN <= len(secret) <= _SECRET_BYTES_MAX:
            raise KeyRefused(f"The key holds {len(secret)} bytes; {_SECRET_BYTES_MIN}–{_SECRET_BYTES_MAX} are allowed.")
        return cls(secret)

    def __str__(self) -> str:
        return "whsec_…"


def sign(keys: Sequence[Key], message_id: str, timestamp: int, body: bytes) -> str:
    """The value of `webhook-signature`: a signature per key, in their order, with a space between."""
    if not keys or _MESSAGE_ID.fullmatch(message_id) is None or not 0 <= timestamp < 10**12:
        raise ValueError(f"Can not sign {message_id!r} at {timestamp} with {len(keys)} keys.")
    head = f"{message_id}.{timestamp}.".encode("ascii")
    return " ".join(["v1," + key.signature(head, body).decode("ascii") for key in keys])


def verify(
    keys: Sequence[Key],
    message_id: str | None,
    timestamp: str | None,
    signature: str | None,
    body: bytes,
    now_seconds: float,
) -> None:
    """Return if one of the signatures fits one of the keys and the timestamp is not over 300 s away.

    The texts are the headers as they came, None where one is missing.
    """
    if message_id is None or timestamp is None or signature is None:
        raise SignatureRefused("webhook-id, webhook-timestamp or webhook-signature is missing")
    if _MESSAGE_ID.fullmatch(message_id) is None:
        raise SignatureRefused("webhook-id is not 1–256 visible ASCII characters without a dot")
    if _TIMESTAMP.fullmatch(timestamp) is None:
        raise SignatureRefused("webhook-timestamp is not a plain decimal number of seconds")
    age_seconds = now_seconds - int(timestamp)
    # In this form a clock that says NaN refuses.
    if not abs(age_seconds) <= AGE_SECONDS_MAX:
        raise SignatureRefused(f"webhook-timestamp is {age_seconds:+.0f} s old, {AGE_SECONDS_MAX} are allowed; check both clocks")
    candidates = _read_signatures(signature)
    head = f"{message_id}.{timestamp}.".encode("ascii")
    fits = False
    # No early exit: how long it takes says nothing about which key or how much of a signature fits.
    for key in keys:
        expected = key.signature(head, body).decode("ascii")
        for candidate in candidates:
            fits |= hmac.compare_digest(expected, candidate)
    if not fits:
        raise SignatureRefused("no signature fits a key; do both sides have the same signing key?")


def reply_id(request_id: str) -> str:
    """The webhook-id of the reply to a request."""
    return "re_" + request_id


def sign_lines(key: Key, request_id: str, timestamp: int, texts: Iterable[bytes]) -> bytes:
    """Lines of the streamed reply to a request, their newlines included. Each JSON text is on one line."""
    message_id = reply_id(request_id)
    if _MESSAGE_ID.fullmatch(message_id) is None or not 0 <= timestamp < 10**12:
        raise ValueError(f"Can not sign {message_id!r} at {timestamp}.")
    head = f"{message_id}.{timestamp}.".encode("ascii")
    lines = [b"v1,%b %d %b\n" % (key.signature(head, text), timestamp, text) for text in texts]
    written = b"".join(lines)
    if written.count(b"\n") != len(lines):
        raise ValueError("The JSON of a line holds no newline.")
    return written


def verify_line(keys: Sequence[Key], request_id: str, line: bytes, now_seconds: float) -> bytes:
    """The JSON of a line of a streamed reply, verified. Skip empty lines before: they mean nothing."""
    parts = line.removesuffix(b"\n").split(b" ", 2)
    if len(parts) != 3:
        raise SignatureRefused("the line is not `v1,<signature> <timestamp> <json>`")
    signature, timestamp, json_bytes = parts
    # Latin-1 takes any byte; what is not ASCII then fits no pattern.
    verify(keys, reply_id(request_id), timestamp.decode("latin-1"), signature.decode("latin-1"), json_bytes, now_seconds)
    return json_bytes


def new_message_id() -> str:
    """A webhook-id that was never used: 128 random bits."""
    return "msg_" + secrets.token_hex(16)


def _read_signatures(header: str) -> list[str]:
    """The v1 signatures of a header, which is refused whole when anything in it is odd."""
    entries = header.split(" ", SIGNATURES_MAX) if len(header) <= _HEADER_CHARACTERS_MAX else []
    if not entries or len(entries) > SIGNATURES_MAX:
        raise SignatureRefused(f"webhook-signature holds more than {SIGNATURES_MAX} signatures")
    if len(set(entries)) < len(entries):
        raise SignatureRefused("webhook-signature holds a signature twice")
    found = [_ENTRY.fullmatch(entry) for entry in entries]
    if None in found:
        raise SignatureRefused("webhook-signature is malformed")
    values = [match[1] for match in found if match is not None and match[1] is not None]
    if not values:
        raise SignatureRefused("webhook-signature holds no signature of version v1")
    return values
