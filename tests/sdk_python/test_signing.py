"""The SDK's signatures: the vectors of signatures and lines, the engine's own implementation, the stock library."""

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook

from durable.signing import Key, KeyRefused, SignatureRefused, new_message_id, reply_id, sign, sign_lines, verify, verify_line
from protocol import signing as engine_signing

VECTORS = Path(__file__).parents[2] / "protocol" / "vectors"
SIGNING = json.loads((VECTORS / "signing.json").read_text("utf-8"))
LINES = json.loads((VECTORS / "lines.json").read_text("utf-8"))
KEY_TEXT = "whsec_hn4ssE9aBNy9WSUBpej+nOqvylAlVibKc2wTgEJTC6Q="


def name_of(case: dict[str, Any]) -> str:
    return str(case["name"])


def keys_of(case: dict[str, Any]) -> list[Key]:
    return [Key.parse(text) for text in case["keys"]]


@pytest.mark.parametrize("case", SIGNING["sign"], ids=name_of)
def test_signs_as_the_vector_says(case: dict[str, Any]) -> None:
    assert sign(keys_of(case), case["id"], case["timestamp"], case["body"].encode()) == case["signature"]


@pytest.mark.parametrize("case", SIGNING["accept"], ids=name_of)
def test_accepts_as_the_vector_says(case: dict[str, Any]) -> None:
    verify(keys_of(case), case["id"], case["timestamp"], case["signature"], case["body"].encode(), case["now"])


@pytest.mark.parametrize("case", SIGNING["refuse"], ids=name_of)
def test_refuses_as_the_vector_says(case: dict[str, Any]) -> None:
    with pytest.raises(SignatureRefused):
        verify(keys_of(case), case["id"], case["timestamp"], case["signature"], case["body"].encode(), case["now"])


def test_ten_thousand_signatures_are_refused_without_computing_one_for_each() -> None:
    case = SIGNING["ten_thousand"]
    header = " ".join([case["entry"]] * case["count"])
    started = time.perf_counter()
    with pytest.raises(SignatureRefused):
        verify(keys_of(case), case["id"], case["timestamp"], header, case["body"].encode(), case["now"])
    assert time.perf_counter() - started < 0.01


@pytest.mark.parametrize("text", SIGNING["keys"]["accept"])
def test_a_good_key_is_read_and_never_shown(text: str) -> None:
    key = Key.parse(text)
    assert text[6:20] not in repr(key) + str(key)


@pytest.mark.parametrize("case", SIGNING["keys"]["refuse"], ids=name_of)
def test_a_bad_key_is_refused_without_repeating_it(case: dict[str, Any]) -> None:
    with pytest.raises(KeyRefused) as refused:
        Key.parse(case["key"])
    assert len(case["key"]) < 12 or case["key"][6:] not in str(refused.value)


@pytest.mark.parametrize("case", LINES["sign"], ids=name_of)
def test_writes_lines_as_the_vector_says(case: dict[str, Any]) -> None:
    line = sign_lines(Key.parse(case["key"]), case["request_id"], case["timestamp"], [case["json"].encode()])
    assert line == case["line"].encode()


@pytest.mark.parametrize("case", LINES["stream"], ids=name_of)
def test_reads_streams_as_the_vector_says(case: dict[str, Any]) -> None:
    lines = [line for line in case["text"].encode().split(b"\n") if line]
    read = [verify_line(keys_of(case), case["request_id"], line, case["now"]).decode() for line in lines]
    assert read == case["json"]


@pytest.mark.parametrize("case", LINES["refuse"], ids=name_of)
def test_refuses_lines_as_the_vector_says(case: dict[str, Any]) -> None:
    with pytest.raises(SignatureRefused):
        verify_line(keys_of(case), case["request_id"], case["line"].encode(), case["now"])


def test_the_reply_id_is_that_of_the_vector() -> None:
    for case in LINES["reply_ids"]:
        assert reply_id(case["request_id"]) == case["reply_id"]


def test_a_line_with_a_newline_inside_is_never_written() -> None:
    with pytest.raises(ValueError, match="newline"):
        sign_lines(Key.parse(KEY_TEXT), "msg_1", 1, [b"{}", b'{\n"a":1}'])


def test_the_stock_library_accepts_our_signatures_and_we_its() -> None:
    webhook, key, body, now = Webhook(KEY_TEXT), Key.parse(KEY_TEXT), b'{"a":"\xc3\xa9"}', int(time.time())
    headers = {"webhook-id": "msg_1", "webhook-timestamp": str(now), "webhook-signature": sign([key], "msg_1", now, body)}
    assert webhook.verify(body, headers) == {"a": "é"}
    theirs = webhook.sign("msg_2", datetime.fromtimestamp(now, UTC), body.decode())
    verify([key], "msg_2", str(now), theirs, body, now)


def test_while_keys_rotate_either_side_may_have_the_old_or_the_new_one() -> None:
    old, new = Key.parse(KEY_TEXT), Key.parse("whsec_5XljUfWcYmSsGGbaFwt53gTOy2MX3msF")
    for peer in (old, new):
        verify([peer], "m", "5", sign([old, new], "m", 5, b"{}"), b"{}", 5)
        verify([old, new], "m", "5", sign([peer], "m", 5, b"{}"), b"{}", 5)


def test_engine_and_sdk_sign_the_same() -> None:
    engine_key = engine_signing.Key.parse(KEY_TEXT)
    message_id = new_message_id()
    assert sign([Key.parse(KEY_TEXT)], message_id, 7, b"x") == engine_signing.sign([engine_key], message_id, 7, b"x")
