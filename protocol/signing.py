"""Standard Webhooks signatures, both directions: make keys, sign a body or a line, verify before anything
is parsed.

Pure: the caller gives the time. Every refusal is a `SignatureError`; the wire answers 401 `bad_signature`
for all of them, the `reason` is for logs only, since telling a stranger what was wrong would help only a
stranger.
"""

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from protocol.limits import SIGNATURE_AGE_SECONDS_MAX

if TYPE_CHECKING:
    from hashlib import _Hash

KEY_PREFIX: Final = "whsec_"
KEY_BYTES_MIN: Final = 24
KEY_BYTES_MAX: Final = 64
# Two keys live while they rotate; 16 leaves room for other versions beside v1. More is an attempt to make
# us compute or compare.
SIGNATURES_MAX: Final = 16
SIGNATURE_TEXT_MAX: Final = 16 * 100

# The id and the timestamp are joined with "." in what is signed, so an id with a "." could be cut in two
# ways.
_MESSAGE_ID = re.compile(r"[!-\-/-~]{1,256}")
_TIMESTAMP = re.compile(r"0|[1-9][0-9]{0,11}")
_V1_VALUE = re.compile(r"[A-Za-z0-9+/]{43}=")
# The header of nearly every message: the one signature of one key.
_ONE_V1 = re.compile(r"v1,([A-Za-z0-9+/]{43}=)")
_SHA256_BLOCK_BYTES: Final = 64
_INNER_PAD: Final = bytes(byte ^ 0x36 for byte in range(256))
_OUTER_PAD: Final = bytes(byte ^ 0x5C for byte in range(256))
_ENTRY = re.compile(r"v[0-9]{1,3}[a-z]?,[A-Za-z0-9+/=]{1,100}")


class SignatureError(Exception):
    """The message is not from a holder of one of the keys, or not for now. Answer 401; do not parse the
    body.
    """

    code: Final = "bad_signature"

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class KeyRefused(ValueError):
    """The text is not a signing key. The message says what is wrong without repeating the key; whoever set
    it must mend it.
    """

    code: Final = "bad_key"


@dataclass(frozen=True, slots=True)
class Key:
    """One signing key. Its secret never shows in `repr`."""

    secret: bytes = field(repr=False)
    # The two hashes of HMAC-SHA256 (RFC 2104) with the key in them: copying them costs half of what taking in the key again does.
    _inner: "_Hash" = field(init=False, repr=False, compare=False)
    _outer: "_Hash" = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        secret = self.secret if len(self.secret) <= _SHA256_BLOCK_BYTES else hashlib.sha256(self.secret).digest()
        block = secret.ljust(_SHA256_BLOCK_BYTES, b"\0")
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
        """Read `whsec_<base64>`; KeyRefused says what is wrong with it."""
        if not text.startswith(KEY_PREFIX):
            raise KeyRefused("A signing key begins with `whsec_`; this one does not. Copy the whole key, prefix included.")
        encoded = text[len(KEY_PREFIX) :]
        try:
            secret = base64.b64decode(encoded.encode("ascii"), validate=True)
        except (binascii.Error, UnicodeEncodeError):
            raise KeyRefused(
                "What follows `whsec_` in the signing key is not base64 (letters, digits, `+`, `/`, "
                "padded with `=`). "
                "Copy the whole key, without spaces or quotes around it."
            ) from None
        # Two texts for one key would make "the same key" a matter of taste between languages.
        if base64.b64encode(secret).decode("ascii") != encoded:
            raise KeyRefused("The base64 after `whsec_` in the signing key has stray bits at its end. Copy the whole key.")
        if not KEY_BYTES_MIN <= len(secret) <= KEY_BYTES_MAX:
            raise KeyRefused(
                f"The signing key holds {len(secret)} bytes; it must hold {KEY_BYTES_MIN} to "
                f"{KEY_BYTES_MAX}. "
                "Make a new one with `durable keys new`."
            )
        return cls(secret)

    def __str__(self) -> str:
        return "whsec_…"

    def text(self) -> str:
        """The key as people store it. Never log it."""
        return KEY_PREFIX + base64.b64encode(self.secret).decode("ascii")


def sign(keys: Sequence[Key], message_id: str, timestamp: int, body: bytes) -> str:
    """The value of `webhook-signature`: one signature per key, in the order of the keys, with a space
    between.
    """
    if not keys:
        raise ValueError("Signing needs at least one key.")
    if _MESSAGE_ID.fullmatch(message_id) is None:
        raise ValueError(f"The message id {message_id!r} must be 1–256 visible ASCII characters without a dot.")
    if not 0 <= timestamp <= 999_999_999_999:
        raise ValueError(f"The timestamp {timestamp} must be whole seconds since 1970.")
    head = b"%b.%d." % (message_id.encode("ascii"), timestamp)
    return " ".join(["v1," + key.signature(head, body).decode("ascii") for key in keys])


def verify(
    keys: Sequence[Key],
    message_id: str | None,
    timestamp: str | None,
    signature: str | None,
    body: bytes,
    now_seconds: float,
) -> None:
    """Return if one of the signatures fits one of the keys and the timestamp is within 300 s of now; else
    SignatureError.

    The three texts are the values of the headers as they came, None where one is missing. `body` is the raw
    bytes.
    """
    if not message_id or not timestamp or not signature:
        raise SignatureError(
            "missing_header",
            "The headers webhook-id, webhook-timestamp and webhook-signature are all needed.",
        )
    if _MESSAGE_ID.fullmatch(message_id) is None:
        raise SignatureError("bad_id", "The webhook-id must be 1–256 visible ASCII characters without a dot.")
    _require_fresh(timestamp, now_seconds)
    candidates = _candidates(signature)
    if not _fits(keys, f"{message_id}.{timestamp}.".encode("ascii"), body, candidates):
        raise SignatureError("no_match", "No signature fits a key of this workspace. Do both sides have the same signing key?")


def reply_id(request_id: str) -> str:
    """The webhook-id of the reply to a request: it ties the reply to that one request."""
    return "re_" + request_id


def sign_line(key: Key, request_id: str, unix: int, json_bytes: bytes) -> bytes:
    """One line of a streamed reply to the request, newline included."""
    if b"\n" in json_bytes:
        raise ValueError("A line of a streamed reply holds its JSON without newlines; encode it compactly.")
    return sign([key], reply_id(request_id), unix, json_bytes).encode("ascii") + b" %d " % unix + json_bytes + b"\n"


def verify_line(keys: Sequence[Key], request_id: str, line: bytes, now_seconds: float) -> bytes:
    """The JSON of a line of a streamed reply, verified. Skip empty lines before: they are not signed and
    mean nothing.
    """
    parts = line.removesuffix(b"\n").split(b" ", 2)
    if len(parts) != 3:
        raise SignatureError("bad_line", "A line of a streamed reply is `v1,<signature> <timestamp> <json>`; this one is not.")
    signature, timestamp, json_bytes = parts
    # Latin-1 never fails; anything that is not ASCII is refused by the patterns in `verify`.
    verify(
        keys,
        reply_id(request_id),
        timestamp.decode("latin-1"),
        signature.decode("latin-1"),
        json_bytes,
        now_seconds,
    )
    return json_bytes


def new_key() -> str:
    """A fresh signing key of 32 random bytes, as text."""
    return Key(secrets.token_bytes(32)).text()


def new_message_id() -> str:
    """A fresh webhook-id: 128 random bits."""
    return "msg_" + secrets.token_hex(16)


def _require_fresh(timestamp: str, now_seconds: float) -> None:
    if _TIMESTAMP.fullmatch(timestamp) is None:
        raise SignatureError("bad_timestamp", "The webhook-timestamp must be seconds since 1970 as a plain decimal integer.")
    age_seconds = now_seconds - int(timestamp)
    # Written so that a NaN clock refuses.
    if not abs(age_seconds) <= SIGNATURE_AGE_SECONDS_MAX:
        raise SignatureError(
            "timestamp_out_of_window",
            f"The webhook-timestamp is {abs(age_seconds):.0f} s "
            f"{'behind' if age_seconds > 0 else 'ahead of'} this clock; "
            f"{SIGNATURE_AGE_SECONDS_MAX} s are allowed. Check the clocks of both machines.",
        )


def _candidates(signature: str) -> list[bytes]:
    """The v1 signatures of a header. A header with anything odd in it is refused whole: an honest sender
    makes none.
    """
    only = _ONE_V1.fullmatch(signature)
    if only is not None:
        return [only[1].encode("ascii")]
    if len(signature) > SIGNATURE_TEXT_MAX:
        raise SignatureError("too_many_signatures", f"The webhook-signature holds more than {SIGNATURES_MAX} signatures.")
    entries = signature.split(" ")
    if len(entries) > SIGNATURES_MAX:
        raise SignatureError("too_many_signatures", f"The webhook-signature holds more than {SIGNATURES_MAX} signatures.")
    if len(set(entries)) != len(entries):
        raise SignatureError("repeated_signature", "The webhook-signature holds the same signature twice.")
    values: list[bytes] = []
    for entry in entries:
        version, _, value = entry.partition(",")
        if _ENTRY.fullmatch(entry) is None or (version == "v1" and _V1_VALUE.fullmatch(value) is None):
            raise SignatureError(
                "malformed_signature",
                "The webhook-signature must be `v1,` and 44 characters of base64, several with one space between.",
            )
        if version == "v1":
            values.append(value.encode("ascii"))
    if not values:
        raise SignatureError("no_v1_signature", "The webhook-signature holds no signature of version v1.")
    return values


def _fits(keys: Sequence[Key], head: bytes, body: bytes, candidates: Sequence[bytes]) -> bool:
    # No early exit: the time depends on the numbers of keys and signatures, never on which of them fits or
    # how far.
    fits = False
    for key in keys:
        expected = key.signature(head, body)
        for candidate in candidates:
            fits |= hmac.compare_digest(expected, candidate)
    return fits
