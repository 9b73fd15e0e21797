"""The signing and line vectors against the package, and the package against the stock Standard Webhooks library."""

import base64
import hmac
import time
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from protocol.signing import (
    Key,
    KeyRefused,
    SignatureError,
    new_key,
    new_message_id,
    reply_id,
    sign,
    sign_line,
    verify,
    verify_line,
)
from tests.protocol.vector_files import load, named

SIGNING = load("signing.json")
LINES = load("lines.json")


def check(case: dict[str, Any]) -> None:
    keys = [Key.parse(key) for key in case["keys"]]
    verify(keys, case["id"], case["timestamp"], case["signature"], case["body"].encode(), case["now"])


@pytest.mark.parametrize("case", **named(SIGNING["sign"]))
def test_signing_gives_exactly_the_signature_of_the_vector(case: dict[str, Any]) -> None:
    keys = [Key.parse(key) for key in case["keys"]]
    assert sign(keys, case["id"], case["timestamp"], case["body"].encode()) == case["signature"]


@pytest.mark.parametrize("case", **named(SIGNING["accept"]))
def test_a_good_signature_is_accepted(case: dict[str, Any]) -> None:
    check(case)


@pytest.mark.parametrize("case", **named(SIGNING["refuse"]))
def test_a_bad_signature_is_refused_with_its_reason(case: dict[str, Any]) -> None:
    with pytest.raises(SignatureError) as refused:
        check(case)
    assert refused.value.reason == case["reason"]
    assert refused.value.code == "bad_signature"


def test_ten_thousand_signatures_are_refused_before_they_are_looked_at() -> None:
    case = SIGNING["ten_thousand"]
    case["signature"] = " ".join([case["entry"]] * case["count"])
    with pytest.raises(SignatureError) as refused:
        check(case)
    assert refused.value.reason == "too_many_signatures"


@pytest.mark.parametrize("text", SIGNING["keys"]["accept"])
def test_a_good_key_is_read_and_written_back(text: str) -> None:
    key = Key.parse(text)
    assert key.text() == text
    assert text[6:] not in repr(key) + str(key) and repr(key.secret) not in repr(key)


@pytest.mark.parametrize("case", **named(SIGNING["keys"]["refuse"]))
def test_a_bad_key_is_refused_without_repeating_it(case: dict[str, Any]) -> None:
    with pytest.raises(KeyRefused) as refused:
        Key.parse(case["key"])
    assert len(case["key"]) < 10 or case["key"][8:30] not in str(refused.value)


def test_new_keys_and_ids_are_fresh_and_good() -> None:
    assert len({new_key() for _ in range(50)}) == len({new_message_id() for _ in range(50)}) == 50
    key, message_id = Key.parse(new_key()), new_message_id()
    verify([key], message_id, "5", sign([key], message_id, 5, b"x"), b"x", 5)


@pytest.mark.parametrize("case", LINES["reply_ids"])
def test_the_reply_is_bound_to_the_request(case: dict[str, Any]) -> None:
    assert reply_id(case["request_id"]) == case["reply_id"]


@pytest.mark.parametrize("case", **named(LINES["sign"]))
def test_a_line_is_exactly_that_of_the_vector(case: dict[str, Any]) -> None:
    line = sign_line(Key.parse(case["key"]), case["request_id"], case["timestamp"], case["json"].encode())
    assert line == case["line"].encode()


@pytest.mark.parametrize("case", **named(LINES["stream"]))
def test_a_stream_gives_the_json_of_its_lines(case: dict[str, Any]) -> None:
    keys = [Key.parse(key) for key in case["keys"]]
    lines = [line for line in case["text"].encode().split(b"\n") if line]
    got = [verify_line(keys, case["request_id"], line, case["now"]).decode() for line in lines]
    assert got == case["json"]


@pytest.mark.parametrize("case", **named(LINES["refuse"]))
def test_a_bad_line_is_refused(case: dict[str, Any]) -> None:
    keys = [Key.parse(key) for key in case["keys"]]
    with pytest.raises(SignatureError):
        verify_line(keys, case["request_id"], case["line"].encode(), case["now"])


def test_a_line_with_a_newline_in_its_json_can_not_be_signed() -> None:
    with pytest.raises(ValueError, match="newline"):
        sign_line(Key.parse(new_key()), "msg", 1, b'{"a":\n1}')


def test_the_stock_library_verifies_our_signatures_and_we_verify_its() -> None:
    text, body, now = new_key(), '{"type":"events","data":"é ✓"}', int(time.time())
    key, message_id = Key.parse(text), new_message_id()
    headers = {
        "webhook-id": message_id,
        "webhook-timestamp": str(now),
        "webhook-signature": sign([Key.parse(new_key()), key], message_id, now, body.encode()),
    }
    Webhook(text).verify(body, headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(text).verify(body + " ", headers)
    theirs = Webhook(text).sign(message_id, datetime.fromtimestamp(now, UTC), body)
    verify([key], message_id, str(now), theirs, body.encode(), now)


@given(st.binary(min_size=24, max_size=64), st.binary(), st.integers(0, 999_999_999_999))
def test_whatever_is_signed_verifies_and_any_change_does_not(secret: bytes, body: bytes, at: int) -> None:
    key = Key.parse("whsec_" + base64.b64encode(secret).decode())
    signature = sign([key], "m", at, body)
    verify([key], "m", str(at), signature, body, at)
    for id_, stamp, other in [("n", at, body), ("m", at ^ 1, body), ("m", at, body + b"\0"), ("m", at, body[:-1] + b"~!")]:
        with pytest.raises(SignatureError):
            verify([key], id_, str(stamp), signature, other, at)


odd_text = st.none() | st.text(max_size=60) | st.sampled_from(["5", "v1,", "v1,AAAA", " ", ",", "v1,,", "v1 v1"])


@given(odd_text, odd_text, odd_text, st.sampled_from([5.0, float("nan"), float("inf")]))
def test_garbage_headers_are_refused_and_nothing_else_happens(
    message_id: str | None, timestamp: str | None, signature: str | None, now: float
) -> None:
    with pytest.raises(SignatureError):
        verify([Key(b"k" * 32)], message_id, timestamp, signature, b"{}", now)


@given(st.binary(max_size=120))
def test_a_garbage_line_is_refused_and_nothing_else_happens(line: bytes) -> None:
    with pytest.raises(SignatureError):
        verify_line([Key(b"k" * 32)], "msg", line, 5)


@pytest.mark.parametrize("secret_bytes", [24, 32, 64, 65, 100])
@pytest.mark.parametrize("body_bytes", [0, 55, 64, 3_000])
def test_a_signature_is_the_hmac_of_the_standard_library(secret_bytes: int, body_bytes: int) -> None:
    secret, head, body = bytes(range(secret_bytes)), b"msg_1.1700000000.", b"x" * body_bytes
    expected = base64.b64encode(hmac.digest(secret, head + body, "sha256"))
    assert Key(secret).signature(head, body) == expected
