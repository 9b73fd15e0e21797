"""Everything that is wrong is a refusal in words, never a 500; nothing of it is stored, and the engine works as before.

Asked over raw HTTP. Each test is between two looks at the tables and followed by a good event.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Iterator

import pytest

from tests.scenarios.asking import ended
from tests.scenarios.raw_http import CONTENT, Answer, ask, pour, signed, speak
from tests.system.system import System

MIB = 1 << 20
WORKSPACE = '"workspace":{"app":"shop","env":"dev"}'
TABLES = (
    "workspace",
    "signing_key",
    "event_key",
    "app",
    "function",
    "event",
    "event_dedup",
    "run",
    "step",
    "wait",
    "audit_entry",
)


@pytest.fixture(scope="module")
def port(system: System) -> int:
    return system.engine_ports[0]


@pytest.fixture(scope="module")
def key(system: System) -> str:
    return system.read_signing_key()


@pytest.fixture(scope="module")
def token(system: System) -> str:
    return (system.place / "home" / "dev.token").read_text().strip()


@pytest.fixture(autouse=True)
def nothing_is_stored_and_all_works_afterwards(system: System, port: int, key: str) -> Iterator[None]:
    before = _counts(system)
    yield
    assert _counts(system) == before
    answer = _post(port, key, "/v1/events", _events('{"name":"double.wanted","data":{"n":4}}'))
    assert answer.status == 200, answer.body
    [run] = answer.json["events"][0]["runs"]
    assert ended(system, run["run_id"])["output"]["twice"] == 8
    assert "request_failed" not in (system.place / "engine0.log").read_text(), "the engine took something for its own fault"


def _counts(system: System) -> dict[str, int]:
    [row] = system.query("SELECT " + ", ".join(f"(SELECT count(*) FROM {table}) AS {table}" for table in TABLES))
    return row


def _events(*events: str) -> bytes:
    return f'{{"type":"events",{WORKSPACE},"events":[{",".join(events)}]}}'.encode()


def _post(port: int, key: str, path: str, body: bytes, method: str = "POST") -> Answer:
    return ask(port, method, path, body, signed(key, body))


def _require_refusal(answer: Answer, status: int, code: str | None = None, *words: str) -> None:
    """A refusal in the engine's words, with this status."""
    assert answer.status == status, (answer.status, answer.body[:500])
    assert answer.headers["content-type"] == "application/json"
    refusal = answer.json
    assert code is None or refusal["code"] == code, refusal
    assert re.fullmatch(r"[a-z0-9_]+", refusal["code"]) and len(refusal["message"]) > 10, refusal
    assert refusal.get("hint"), f"it does not say what to do: {refusal}"
    assert len(answer.body) < 2_000, "a refusal does not repeat what was sent"
    for word in words:
        assert word in answer.body.decode(), refusal


# What is in a body ----------------------------------------------------------------------------------------------------

GOOD = '{"name":"bad.input","data":{"n":1}}'
BAD_JSON = {
    "no JSON": (b"", "empty_json"),
    "a half": (_events(GOOD)[:-9], "invalid_json"),
    "text behind it": (_events(GOOD) + b"}", "trailing_text"),
    "a byte order mark": (b"\xef\xbb\xbf" + _events(GOOD), "byte_order_mark"),
    "another encoding": (_events(GOOD).decode().encode("utf-16"), None),
    "bytes that are no UTF-8": (_events('{"name":"bad.input","data":"%"}').replace(b"%", b"\xc3\x28"), "invalid_utf8"),
    "a comma too many": (_events('{"name":"bad.input","data":[1,]}'), "invalid_json"),
    "single quotes": (_events("{'name':'bad.input'}"), "invalid_json"),
    "a key twice": (_events('{"name":"bad.input","data":{"n":1,"n":2}}'), "duplicate_key"),
    "a key twice in the envelope": (_events('{"name":"bad.input","name":"bad.other","data":1}'), "duplicate_key"),
    "NaN": (_events('{"name":"bad.input","data":NaN}'), "not_finite"),
    "Infinity": (_events('{"name":"bad.input","data":[-Infinity]}'), "not_finite"),
    "a number beyond a double": (_events('{"name":"bad.input","data":1e400}'), "number_overflow"),
    "an integer beyond 2^53": (_events('{"name":"bad.input","data":9007199254740992}'), "integer_range"),
    "a lone surrogate": (_events('{"name":"bad.input","data":"\\ud800"}'), "lone_surrogate"),
    "surrogates in the wrong order": (_events('{"name":"bad.input","data":"\\udc00\\ud800"}'), "lone_surrogate"),
    "a null character": (_events('{"name":"bad.input","data":"a\\u0000b"}'), "null_character"),
    "a null character in a key": (_events('{"name":"bad.input","data":{"\\u0000":1}}'), "null_character"),
    # With a second event that is no object: the first, as deep as is allowed, is not what is refused.
    "a good one as deep as may be beside a bad one": (_events('{"name":"b","data":' + "[" * 100 + "]" * 100 + "}", "7"), "bad_field"),
    "a payload too deep": (_events('{"name":"bad.input","data":' + "[" * 101 + "]" * 101 + "}"), "too_deep"),
    "a hundred thousand deep": (_events('{"name":"bad.input","data":' + "[" * 100_000 + "]" * 100_000 + "}"), "too_deep"),
    "never closed": (b"[" * 1_000_000, None),
    "a list": (b"[]", None),
    "a number": (b"12", None),
    "events that are no list": (f'{{"type":"events",{WORKSPACE},"events":7}}'.encode(), None),
    "no events": (_events(), None),
    "an event without a name": (_events('{"data":1}'), None),
    "a name with a control character": (_events('{"name":"bad\\ninput","data":1}'), None),
    "an empty name": (_events('{"name":"","data":1}'), None),
    "a name too long": (_events(f'{{"name":"{"n" * 257}","data":1}}'), None),
    "a name of the engine's": (_events('{"name":"durable.start","data":1}'), "reserved_name"),
    "an empty id": (_events('{"name":"bad.input","data":1,"id":""}'), None),
    "an id too long": (_events(f'{{"name":"bad.input","data":1,"id":"{"i" * 129}"}}'), None),
    "an id that is a number": (_events('{"name":"bad.input","data":1,"id":7}'), None),
    "another type": (_events(GOOD).replace(b'"events"', b'"checkpoint"', 1), None),
    "no type": (_events(GOOD).replace(b'"type":"events",', b""), None),
    "no workspace": (_events(GOOD).replace(f"{WORKSPACE},".encode(), b""), None),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_JSON)
def test_a_body_that_no_language_could_carry_or_that_says_something_else_is_refused(port: int, key: str, what: str) -> None:
    body, code = BAD_JSON[what]
    _require_refusal(_post(port, key, "/v1/events", body), 400, code)


def test_an_event_beyond_a_mebibyte_is_refused_with_limit_and_size(port: int, key: str) -> None:
    data = '"' + "x" * (MIB - 1) + '"'
    answer = _post(port, key, "/v1/events", _events(f'{{"name":"bad.input","data":{data}}}'))
    _require_refusal(answer, 400, "too_large", "1048576", "1048577", "/events/0")


def test_a_thousand_and_one_events_are_refused_and_none_is_stored(port: int, key: str) -> None:
    _require_refusal(_post(port, key, "/v1/events", _events(*[GOOD] * 1_001)), 400, "too_many", "1000", "1001", "/events")


@pytest.mark.parametrize("index", [0, 41, 99])
def test_one_bad_event_in_a_hundred_refuses_all_and_is_named(port: int, key: str, index: int) -> None:
    events = [GOOD] * 100
    events[index] = '{"name":"durable.bad","data":1}'
    _require_refusal(_post(port, key, "/v1/events", _events(*events)), 400, None, f"/events/{index}")


@pytest.mark.parametrize(
    ("path", "method", "message"),
    [
        ("/v1/checkpoint", "POST", {"type": "checkpoint", "entries": []}),
        ("/v1/checkpoint", "POST", {"type": "checkpoint", "entries": [{"run_id": "no uuid", "generation": 1, "known": 0, "ops": []}]}),
        ("/v1/checkpoint", "POST", {"type": "checkpoint", "entries": "none"}),
        ("/v1/start", "POST", {"type": "start", "function": "no/such\\function", "input": 1}),
        ("/v1/start", "POST", {"type": "start", "input": 1}),
        ("/v1/result", "POST", {"type": "result", "run_id": "7", "wait_seconds": 1}),
        ("/v1/result", "POST", {"type": "result", "run_id": "01a2048d-df0e-7e44-ba59-210252a63033", "wait_seconds": 31}),
        ("/v1/result", "POST", {"type": "result", "run_id": "01a2048d-df0e-7e44-ba59-210252a63033", "wait_seconds": -1}),
        ("/v1/sync", "PUT", {"type": "sync", "url": "http://127.0.0.1:1/", "manifest": {}}),
        ("/v1/sync", "PUT", {"type": "sync", "url": "file:///etc/passwd", "manifest": {"functions": []}}),
    ],
)  # fmt: skip
def test_messages_of_other_routes_are_checked_as_well(
    port: int, key: str, path: str, method: str, message: dict[str, object]
) -> None:
    body = json.dumps({**message, "workspace": {"app": "shop", "env": "dev"}}).encode()
    _require_refusal(_post(port, key, path, body, method), 400)


def test_a_run_or_function_that_is_not_there_is_not_found(port: int, key: str) -> None:
    body = f'{{"type":"start",{WORKSPACE},"function":"nobody","input":1}}'.encode()
    _require_refusal(_post(port, key, "/v1/start", body), 404, "function_not_found")
    body = f'{{"type":"result",{WORKSPACE},"run_id":"01a2048d-df0e-7e44-ba59-210252a63033","wait_seconds":0}}'.encode()
    _require_refusal(_post(port, key, "/v1/result", body), 404, "run_not_found")


def test_a_checkpoint_of_a_run_that_is_not_there_is_stale_and_writes_nothing(port: int, key: str) -> None:
    entry = '{"run_id":"01a2048d-df0e-7e44-ba59-210252a63033","generation":1,"known":0,"ops":[{"op":"complete","output":1}],"ends":true}'
    answer = _post(port, key, "/v1/checkpoint", f'{{"type":"checkpoint",{WORKSPACE},"entries":[{entry}]}}'.encode())
    assert answer.status == 200 and answer.json["entries"][0]["status"] == "stale", answer.body


# Who asks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changed",
    [
        {"webhook_signature": None},
        {"webhook_signature": ""},
        {"webhook_signature": "v1,AAAA"},
        {"webhook_signature": "v1," + "A" * 43 + "="},
        {"webhook_signature": "v2,whatever"},
        {"webhook_id": None},
        {"webhook_id": "msg_of_somebody_else"},
        {"webhook_id": "with.a.dot"},
        {"webhook_timestamp": None},
        {"webhook_timestamp": "now"},
        {"webhook_timestamp": "-1"},
        {"webhook_timestamp": "9" * 40},
        {"durable_workspace": None},
        {"durable_workspace": "shop/prod"},
        {"durable_workspace": "*/dev"},
        {"durable_workspace": "../../etc"},
    ],
    ids=str,
)
def test_a_request_that_is_not_signed_as_it_must_be_is_refused(port: int, key: str, changed: dict[str, str | None]) -> None:
    body = _events(GOOD)
    _require_refusal(ask(port, "POST", "/v1/events", body, signed(key, body, **changed)), 401, "bad_signature")


def test_an_old_a_future_and_a_changed_request_are_refused(port: int, key: str) -> None:
    body = _events(GOOD)
    for at in (time.time() - 310, time.time() + 310):
        _require_refusal(ask(port, "POST", "/v1/events", body, signed(key, body, at=at)), 401, "bad_signature")
    _require_refusal(ask(port, "POST", "/v1/events", body + b" ", signed(key, body)), 401, "bad_signature")
    other = "whsec_" + "A" * 43 + "="
    _require_refusal(ask(port, "POST", "/v1/events", body, signed(other, body)), 401, "bad_signature")


def test_a_webhook_id_that_was_seen_is_refused_although_its_signature_is_good(port: int, key: str) -> None:
    body = f'{{"type":"result",{WORKSPACE},"run_id":"01a2048d-df0e-7e44-ba59-210252a63033","wait_seconds":0}}'.encode()
    headers = signed(key, body)
    assert ask(port, "POST", "/v1/result", body, headers).status == 404, "the first one passes the check of its signature"
    _require_refusal(ask(port, "POST", "/v1/result", body, headers), 401, "bad_signature")


def test_a_body_for_another_workspace_than_the_header_is_refused(port: int, key: str) -> None:
    body = _events(GOOD).replace(b'"shop"', b'"bank"')
    _require_refusal(_post(port, key, "/v1/events", body), 401, "wrong_workspace")


def test_a_good_message_on_the_route_of_another_type_is_refused(port: int, key: str) -> None:
    for path in ("/v1/start", "/v1/result", "/v1/checkpoint"):
        _require_refusal(_post(port, key, path, _events(GOOD)), 400)
    _require_refusal(_post(port, key, "/v1/sync", _events(GOOD), "PUT"), 400)


def test_a_repeated_credential_header_counts_as_none(port: int, key: str) -> None:
    body = _events(GOOD)
    head = "".join(f"{name}: {value}\r\n" for name, value in signed(key, body).items())
    head += f"connection: close\r\ncontent-length: {len(body)}\r\ndurable-workspace: shop/dev\r\n"
    request = f"POST /v1/events HTTP/1.1\r\nhost: x\r\n{head}\r\n"
    answer = speak(port, request.encode() + body)
    assert answer.startswith(b"HTTP/1.1 401") and b'"bad_signature"' in answer, answer[:300]


def test_an_event_key_sends_and_does_nothing_else(port: int, key: str, token: str, system: System) -> None:
    made = system.durable("key", "create", "--app", "shop", "--env", "dev", "--event", "--label", "bad input")
    try:
        bearer = {**CONTENT, "authorization": f"Bearer {made['key']}"}
        assert (
            ask(port, "POST", "/v1/events", _events('{"name":"nobody.listens","data":1,"id":"event-key"}'), bearer).status == 200
        )
        _require_refusal(
            ask(port, "POST", "/v1/events", _events(GOOD).replace(b'"dev"', b'"prod"'), bearer), 401, "wrong_workspace"
        )
        start = f'{{"type":"start",{WORKSPACE},"function":"doubling","input":{{"n":1}}}}'.encode()
        _require_refusal(ask(port, "POST", "/v1/start", start, bearer), 401)
        _require_refusal(ask(port, "POST", "/v1/checkpoint", b"{}", bearer), 401)
        _require_refusal(ask(port, "PUT", "/v1/sync", b"{}", bearer), 401)
        _require_refusal(ask(port, "GET", "/v1/apps", b"", bearer), 401, "bad_token")
    finally:
        revoked = system.durable("key", "revoke", made["key_id"], "--app", "shop", "--env", "dev")
    assert revoked["status"] == "revoked"
    _clean(system)


def _clean(system: System) -> None:
    """Take away what the event key's test stored on purpose, so that the look after it finds what was before."""
    system.query("DELETE FROM event_dedup WHERE external_id = 'event-key'")
    system.query("DELETE FROM event WHERE external_id = 'event-key'")
    system.query("DELETE FROM event_key WHERE label = 'bad input'")
    system.query("DELETE FROM audit_entry WHERE action IN ('key.create', 'key.revoke')")


# People ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method, path", [
    ("GET", "/v1/apps"), ("GET", "/v1/audit"), ("GET", "/v1/engine"), ("GET", "/v1/apps/shop/dev/runs"),
    ("POST", "/v1/apps/shop/dev/events"), ("POST", "/v1/apps/shop/dev/keys"), ("POST", "/v1/apps/shop/dev/functions/doubling/start"),
])  # fmt: skip
def test_people_without_a_good_token_learn_nothing(port: int, token: str, method: str, path: str) -> None:
    assert ask(port, "GET", "/v1/apps", b"", {"authorization": f"Bearer {token}"}).status == 200
    body = b'{"events":[' + GOOD.encode() + b"]}" if method == "POST" else b""
    prefix = token[: len(token) // 3]
    for authorization in (None, "Bearer ", f"Bearer {prefix}{secrets.token_urlsafe(24)}"):
        headers = CONTENT if authorization is None else {**CONTENT, "authorization": authorization}
        answer = ask(port, method, path, body, headers)
        if answer.status == 429:
            _require_refusal(answer, 429, "too_many_failures")
            assert int(answer.headers["retry-after"]) >= 1
        else:
            _require_refusal(answer, 401, "bad_token")
        assert b"shop" not in answer.body


def test_people_who_ask_for_what_is_not_there_or_wrongly_are_told_so(port: int, token: str) -> None:
    bearer = {**CONTENT, "authorization": f"Bearer {token}"}
    base = "/v1/apps/shop/dev"
    for status, method, path, body in (
        (404, "GET", "/v1/apps/nobody/dev/runs", b""),
        (404, "GET", "/v1/apps/SHOP/d%20ev/runs", b""),
        (404, "GET", f"{base}/runs/no-uuid", b""),
        (404, "GET", f"{base}/runs/01a2048d-df0e-7e44-ba59-210252a63033", b""),
        (404, "POST", f"{base}/runs/01a2048d-df0e-7e44-ba59-210252a63033/cancel", b""),
        (404, "GET", f"{base}/events/%00%ff", b""),
        (404, "POST", f"{base}/functions/nobody/start", b"{}"),
        (404, "DELETE", f"{base}/keys/nothing", b""),
        (400, "GET", f"{base}/runs?status=tired", b""),
        (400, "GET", f"{base}/runs?statsu=failed", b""),
        (400, "GET", f"{base}/runs?cursor=%00garbage", b""),
        (400, "GET", f"{base}/runs?limit=-1", b""),
        (400, "GET", f"{base}/runs?limit=%D9%A1", b""),
        (400, "POST", f"{base}/events", b'{"events":[]}'),
        (400, "POST", f"{base}/events", b'{"events":[{"name":"bad.input","data":NaN}]}'),
        (400, "POST", f"{base}/keys", b'{"kind":"master"}'),
        (400, "POST", f"{base}/keys", b"\xff"),
    ):
        answer = ask(port, method, path, body, bearer)
        assert answer.status == status, (method, path, answer.status, answer.body)
        _require_refusal(answer, status)


# HTTP itself ----------------------------------------------------------------------------------------------------------


def test_an_unknown_path_and_an_unknown_method_are_refused_in_json(port: int, key: str) -> None:
    for path in ("/", "/v1", "/v2/events", "/v1/events/", "/v1/%2e%2e/etc/passwd", "/v1/" + "a" * 4_000, "/%ff%fe"):
        _require_refusal(ask(port, "POST", path, b"{}", CONTENT), 404, "not_found")
    for method, path in (
        ("GET", "/v1/events"),
        ("DELETE", "/v1/events"),
        ("POST", "/v1/sync"),
        ("BREW", "/v1/events"),
        ("PUT", "/readyz"),
    ):
        answer = ask(port, method, path, b"", CONTENT)
        _require_refusal(answer, 405, "method_not_allowed")
        assert answer.headers["allow"]


@pytest.mark.parametrize(
    "sent",
    [
        b"\x00\xff\xfe\x80" * 64 + b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"POST /v1/events HTTP/1.1\r\nhost: x\r\ncontent-length: many\r\n\r\n",
        b"POST /v1/events HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
        b"POST /v1/events HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabc",
        b"POST /v1/events HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nnot a length\r\n",
        b"POST /v1/events HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/events HTTP/1.1\r\nhost: x\r\nx: " + b"h" * 200_000 + b"\r\n\r\n",
        b"POST /v1/events HTTP/1.1\r\nhost: x\r\n" + b"x: y\r\n" * 40_000 + b"\r\n",
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 200,
    ],
    ids=lambda sent: repr(sent[:60]),
)
def test_bytes_that_are_no_good_http_end_their_connection_and_nothing_else(port: int, sent: bytes) -> None:
    answer = speak(port, sent)
    # Most of it never becomes a request, so only its HTTP server can answer; that is a 4xx or the end, at once.
    first = answer.split(b"\r\n", 1)[0]
    assert not answer or re.match(rb"HTTP/1.1 (4\d\d|501) ", first) or not answer.startswith(b"HTTP/1"), answer[:300]


def test_a_body_without_end_is_cut_at_the_limit_of_its_route(port: int, key: str) -> None:
    chunk = b"10000\r\n" + b"[" * 65_536 + b"\r\n"
    for path, limit in (("/v1/result", 64 << 10), ("/v1/start", 2 << 20)):
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in signed(key, b"").items()) + "\r\n"
        poured, answer = pour(port, head.encode(), chunk, 64 * MIB)
        # What lies in the buffers of both sides comes on top.
        assert poured <= limit + 16 * MIB, f"{path} took {poured:,} bytes"
        assert answer.startswith(b"HTTP/1.1 413") or not answer, answer[:300]
        assert not answer or b'"body_too_large"' in answer or b"content-type: application/json" in answer.lower(), answer[:600]


def test_an_announced_body_beyond_the_limit_is_refused_before_it_is_sent(port: int, key: str) -> None:
    head = f"POST /v1/start HTTP/1.1\r\nhost: x\r\ncontent-length: {3 * MIB}\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in signed(key, b"").items()) + "\r\n"
    answer = speak(port, head.encode())
    assert answer.startswith(b"HTTP/1.1 413") and b'"body_too_large"' in answer and b'"hint"' in answer, answer[:500]
