"""Messages: the op vectors, the schemas, payloads byte for byte, faults that stay with their run, and garbage."""

import json
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from protocol import limits, messages
from protocol.messages import JsonRefused, MessageRefused, RefusedEntry
from tests.protocol.vector_files import load, named, schemas, validator

OPS = load("ops.json")
RUN = "01990a3c-7d1e-7c3a-9b52-6f1f0e7f9a10"
OTHER = "01990a3c-7d1e-7c3a-9b52-6f1f0e7f9a11"
WORKSPACE = {"app": "shop", "env": "dev"}
OTHERS = {"app": "other", "env": "dev"}
STEP = OPS["accept"][0]["ops"][0]
PLACES = {"both": ["line", "news", "checkpoint_end"], "end": ["line", "checkpoint_end"]}


def ended(ops: list[Any], run: str = RUN) -> dict[str, Any]:
    return {"type": "ended", "run_id": run, "generation": 7, "known": 3, "ops": ops}


def checkpoint(*entries: dict[str, Any]) -> dict[str, Any]:
    return {"type": "checkpoint", "workspace": WORKSPACE, "entries": list(entries)}


def entry(ops: list[Any], run: str = RUN, ends: bool = False) -> dict[str, Any]:
    return {"run_id": run, "generation": 7, "known": 3, "ops": ops, "ends": ends}


def encoded(message: Any) -> bytes:
    return json.dumps(message).encode().replace(b"PLACEHOLDER_SURROGATE", rb"\ud800")


def read_ops(ops: list[Any], via: str) -> messages.Ended | messages.CheckpointEntry | RefusedEntry:
    if via == "line":
        line = messages.decode_line(encoded(ended(ops)))
        assert not isinstance(line, messages.Started)
        return line
    message, refused = messages.decode_checkpoint(encoded(checkpoint(entry(ops, ends=via == "checkpoint_end"))))
    return refused[0] if refused else message.entries[0]


def schema_accepts(ops: list[Any], via: str) -> bool:
    if via == "line":
        return bool(validator("ended.json").is_valid(ended(ops)))
    return bool(validator("checkpoint.json").is_valid(checkpoint(entry(ops, ends=via == "checkpoint_end"))))


@pytest.mark.parametrize("case", **named(OPS["accept"]))
def test_good_ops_are_accepted_by_decoder_and_schema(case: dict[str, Any]) -> None:
    for via in PLACES.get(case["via"], [case["via"]]):
        read = read_ops(case["ops"], via)
        assert not isinstance(read, RefusedEntry), read
        assert len(read.ops) == len(case["ops"])
        assert schema_accepts(case["ops"], via)


# What a schema can not say, or says of one op and not of its neighbours.
BEYOND_SCHEMA = {"misplaced_op", "lone_surrogate"}


@pytest.mark.parametrize("case", **named(OPS["refuse"]))
def test_bad_ops_are_refused_with_code_and_place_and_only_for_their_run(case: dict[str, Any]) -> None:
    for via in PLACES.get(case["via"], [case["via"]]):
        read = read_ops(case["ops"], via)
        assert isinstance(read, RefusedEntry)
        before = "" if via == "line" else "/entries/0"
        assert (read.run_id, read.generation) == (RUN, 7)
        assert (read.error.code, read.error.place) == (case["code"], before + case["place"])
        assert read.error.message.isprintable() and "msgspec" not in read.error.message
        if case["code"] not in BEYOND_SCHEMA and case["name"] != "a day that does not exist":
            assert not schema_accepts(case["ops"], via)


def test_every_op_has_a_good_and_a_bad_vector() -> None:
    every = {struct.__struct_config__.tag for struct in messages.Op.__args__}
    for side in ("accept", "refuse"):
        assert {op["op"] for case in OPS[side] for op in case["ops"] if isinstance(op, dict) and "op" in op} >= every


def test_a_payload_comes_back_byte_for_byte() -> None:
    payload = '{ "b" : 1.0,\t"a":[1e2,"\\u00e9\\/é"] , "10":-0 }'
    raw = encoded(checkpoint(entry([{**STEP, "data": "HERE"}]))).replace(b'"HERE"', payload.encode())
    message, refused = messages.decode_checkpoint(raw)
    assert not refused
    step = message.entries[0].ops[0]
    assert isinstance(step, messages.Step) and bytes(step.data) == payload.encode()
    assert payload.encode() in messages.encode(message)


def test_one_bad_entry_leaves_its_neighbours_whole() -> None:
    bad = [
        encoded(entry([{**STEP, "id": "a#1"}])),
        encoded(entry([{**STEP, "data": "X"}])).replace(b'"X"', b'{"k":1,"k":2}'),
        encoded(entry([{**STEP, "data": "X"}])).replace(b'"X"', rb'"\ud800"'),
        encoded(entry([{**STEP, "data": "X"}])).replace(b'"X"', b"[" * 101 + b"]" * 101),
        encoded(entry([{**STEP, "data": "X"}])).replace(b'"X"', b'"' + b"x" * limits.STEP_RESULT_BYTES_MAX + b'"'),
    ]
    codes = ["bad_name", "duplicate_key", "lone_surrogate", "too_deep", "too_large"]
    for raw_entry, code in zip(bad, codes, strict=True):
        raw = encoded(checkpoint(entry([], OTHER))).replace(b'"entries": [', b'"entries": [' + raw_entry + b", ")
        message, refused = messages.decode_checkpoint(raw)
        assert [each.run_id for each in message.entries] == [OTHER]
        assert [(each.run_id, each.error.code) for each in refused] == [(RUN, code)]
        assert (refused[0].error.place or "").startswith("/entries/0/ops/0/")


def test_a_payload_may_nest_a_hundred_deep_wherever_the_protocol_puts_it() -> None:
    deep = b"[" * 100 + b"]" * 100
    raw = encoded(checkpoint(entry([{"op": "send_events", "id": "n", "events": [{"name": "x", "data": "X"}]}])))
    message, refused = messages.decode_checkpoint(raw.replace(b'"X"', deep))
    assert message.entries and not refused
    raw = encoded({"type": "events", "workspace": WORKSPACE, "events": [{"name": "x", "data": "X"}]})
    assert bytes(messages.decode_events(raw.replace(b'"X"', deep)).events[0].data) == deep
    with pytest.raises(MessageRefused) as refusal:
        messages.decode_events(raw.replace(b'"X"', b"[" + deep + b"]"))
    assert (refusal.value.code, refusal.value.place) == ("too_deep", "/events/0/data")


def test_a_refused_part_of_a_plain_reply_leaves_the_others_whole() -> None:
    raw = encoded({"type": "invoked", "results": [ended([{"op": "nope"}]), ended([{"op": "yield"}], OTHER)]})
    lines, refused = messages.decode_invoked(raw)
    assert [line.run_id for line in lines] == [OTHER]
    assert [(each.run_id, each.error.code, each.error.place) for each in refused] == [(RUN, "unknown_op", "/results/0/ops/0/op")]


EVENTS = {"type": "events", "workspace": WORKSPACE, "events": [{"name": "user.created", "data": {"id": 1}, "id": "evt-1"}]}
START = {"type": "start", "workspace": WORKSPACE, "function": "onboarding", "input": {"id": 1}, "id": "once-1"}
RESULT = {"type": "result", "workspace": WORKSPACE, "run_id": RUN, "wait_seconds": 20}
MANIFEST = {
    "type": "manifest", "workspace": WORKSPACE, "sdk": {"name": "python", "version": "0.1.0"}, "protocol": [1],
    "capabilities": {"checkpoint": True, "batch": {"max": 64}, "refs": True, "alive": True},
    "deployment": "3f2a", "max_body": 4194304,
    "functions": [{
        "id": "onboarding", "name": "onboarding", "triggers": [{"event": "user.created", "if": "event.data.id > 0"}],
        "retries": 3, "backoff": {"initial_seconds": 1, "factor": 2, "max_seconds": 3600, "jitter": True},
        "concurrency": [{"limit": 2, "key": "tenantId"}], "step_timeout_seconds": 900,
    }],
}  # fmt: skip
SYNC = {"type": "sync", "workspace": WORKSPACE, "url": "https://shop.example/api/durable", "manifest": MANIFEST}
INVOKE = {"type": "invoke", "workspace": WORKSPACE, "invocations": [{
    "run_id": RUN, "generation": 7, "attempt": 1, "function": "onboarding", "lease_seconds": 30, "traceparent": "00-ab-cd-01",
    "event": {"id": "e", "name": "user.created", "data": {"id": 1}, "received_at": "2026-01-31T09:00:00.000000Z"},
    "steps": [{"id": "a", "kind": "step", "position": 1, "data": None},
              {"id": "b", "kind": "step", "position": 2, "error": {"name": "E", "message": "m"}},
              {"id": "c", "kind": "step", "position": 3, "abandoned": True},
              {"id": "d", "kind": "step", "position": 4, "ref": "m:1:4", "bytes": 70000}],
    "retries": [{"id": "r", "attempt": 2, "in_seconds": 0}], "waiting": [{"id": "w", "kind": "wait_for_event"}],
}]}  # fmt: skip
OK = {"run_id": RUN, "generation": 7, "status": "ok", "lease_seconds": 30, "abandoned": ["z"],
      "resolved": [{"id": "a", "kind": "step", "position": 4}],
      "retries": [{"id": "r", "attempt": 2, "in_seconds": 1.5}]}  # fmt: skip
REFUSED = {"run_id": OTHER, "generation": 1, "status": "refused", "error": {"code": "too_large", "message": "m", "hint": "h"}}
ALIVE = {"type": "alive", "workspace": WORKSPACE, "process": "web-1.4711", "wait_seconds": 20, "runs": [
    {"run_id": RUN, "generation": 7, "known": 3, "open_seconds": 840},
    {"run_id": OTHER, "generation": 1, "known": 0, "open_seconds": 0}]}  # fmt: skip
STORE = {"type": "values", "workspace": WORKSPACE, "run_id": RUN, "store": [{"x": 1}, None]}
FETCH = {"type": "values", "workspace": WORKSPACE, "run_id": RUN, "fetch": ["m:1:4", "v:1"]}

GOOD: list[tuple[str, Any, Callable[[bytes], Any]]] = [
    ("manifest_question.json", {"type": "manifest", "workspace": {"app": "*", "env": "dev"}}, messages.decode_call),
    ("manifest.json", MANIFEST, messages.decode_manifest),
    ("invoke.json", INVOKE, messages.decode_call),
    ("started.json", {"type": "started", "run_id": RUN, "generation": 7}, messages.decode_line),
    ("ended.json", ended([STEP, {"op": "complete", "output": 1}]), messages.decode_line),
    ("invoked.json", {"type": "invoked", "results": [ended([{"op": "yield"}])]}, messages.decode_invoked),
    ("checkpoint.json", checkpoint(entry([STEP]), entry([], OTHER)), messages.decode_checkpoint),
    ("checkpoint_answer.json", {"type": "checkpoint", "entries": [OK, REFUSED]}, messages.decode_checkpoint_answer),
    ("events.json", EVENTS, messages.decode_events),
    (
        "events_answer.json",
        {"type": "events", "events": [{"id": "e", "runs": [{"run_id": RUN, "function": "f"}], "duplicate": True}]},
        messages.decode_events_answer,
    ),
    ("start.json", START, messages.decode_start),
    ("start_answer.json", {"type": "start", "run_id": RUN, "duplicate": False}, messages.decode_start_answer),
    ("result.json", RESULT, messages.decode_result),
    ("result_answer.json", {"type": "result", "run_id": RUN, "status": "completed", "output": {}}, messages.decode_result_answer),
    ("sync.json", SYNC, messages.decode_sync),
    ("sync_answer.json", {"type": "sync", "functions": 1, "changed": True}, messages.decode_sync_answer),
    ("alive.json", ALIVE, messages.decode_alive),
    (
        "alive_answer.json",
        {
            "type": "alive",
            "runs": [
                {"run_id": RUN, "generation": 7, "lease_seconds": 30, "resolved": OK["resolved"]},
                {"run_id": OTHER, "generation": 1, "status": "stale"},
            ],
        },
        messages.decode_alive_answer,
    ),
    ("values.json", STORE, messages.decode_values),
    ("values.json", FETCH, messages.decode_values),
    ("values_answer.json", {"type": "values", "refs": ["v:1"]}, messages.decode_values_answer),
    ("values_answer.json", {"type": "values", "values": [{"ref": "m:1:4", "data": {"x": 1}}]}, messages.decode_values_answer),
    ("refusal.json", {"code": "bad_signature", "message": "m", "hint": "h"}, messages.decode_refusal),
]
by_schema = pytest.mark.parametrize(("schema", "message", "decode"), GOOD, ids=[name for name, *_ in GOOD])


@by_schema
def test_a_message_goes_through_decoder_and_encoder_and_stays_true_to_its_schema(
    schema: str, message: Any, decode: Callable[[bytes], Any]
) -> None:
    validator(schema).validate(message)
    decoded = decode(encoded(message))
    if isinstance(decoded, tuple):
        decoded, refused = decoded
        assert not refused
    if isinstance(decoded, list):
        decoded = messages.Invoked(decoded)
    again = json.loads(messages.encode(decoded))
    validator(schema).validate(again)
    assert decode(messages.encode(decoded)) is not None
    if isinstance(message, dict) and "type" in message:
        assert again["type"] == message["type"]


def test_every_schema_is_sound_and_every_message_has_one() -> None:
    every = schemas()
    for name, schema in every.items():
        Draft202012Validator.check_schema(schema)
        assert schema["$id"] == name and "://" not in json.dumps({**schema, "$schema": ""}).replace("^https?://", "")
    assert {name for name, *_ in GOOD} | {"definitions.json", "ops.json"} == set(every)


def _spots(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a message outside of payloads, whose content is free."""
    spots = [at] if at else []
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        spots += [] if key in ("data", "input", "output", "store") else _spots(item, (*at, key))
    return spots


odd_values = st.sampled_from(
    [None, True, 0, 1, -1, 2**31, 2**53 - 1, 1.5, 1e300, "", "a", "durable.x", "a#1", "a\nb", "x" * 300, [], [1], {}, {"a": 1},
     "2026-01-31T09:00:00Z", "step", "yield", RUN, OTHER, "ok", "http://x/", "*"]
)  # fmt: skip

# Rules across several fields, which the schemas leave to the decoder.
ONLY_DECODER = {"duplicate_run", "misplaced_op"}
# What only the engine writes is read for its shape alone: the reader trusts the signature for the names in it.
FROM_ENGINE = {
    "invoke.json", "checkpoint_answer.json", "events_answer.json", "start_answer.json", "result_answer.json", "alive_answer.json",
    "values_answer.json",
}  # fmt: skip


@settings(max_examples=1500, deadline=None)
@given(st.sampled_from(GOOD), st.data())
def test_decoder_and_schema_agree_on_messages_with_one_odd_value(good: Any, data: st.DataObject) -> None:
    schema, message, decode = good
    message = deepcopy(message)
    spot = data.draw(st.sampled_from(_spots(message)))
    holder = message
    for key in spot[:-1]:
        holder = holder[key]
    if isinstance(holder, dict) and data.draw(st.booleans()):
        del holder[spot[-1]]
    else:
        holder[spot[-1]] = data.draw(odd_values)
    try:
        decoded = decode(encoded(message))
        refusals = [decoded] if isinstance(decoded, RefusedEntry) else decoded[1] if isinstance(decoded, tuple) else []
        is_decoded, code = not refusals, refusals[0].error.code if refusals else ""
    except MessageRefused as refused:
        is_decoded, code = False, refused.code
        assert refused.message.isprintable()
    is_valid = validator(schema).is_valid(message)
    if is_valid and not is_decoded:
        assert code in ONLY_DECODER, (schema, spot)
    if is_decoded and not is_valid:
        # Where only one type can stand, a decoder does without its name.
        is_nested_type = len(spot) > 1 and spot[-1] == "type" and "type" not in holder
        assert schema in FROM_ENGINE or is_nested_type, (schema, spot)


DECODERS = [getattr(messages, name) for name in messages.__all__ if name.startswith("decode_")]


def _survives(decode: Callable[[Any], Any], raw: bytes) -> None:
    try:
        decode(msgspec.Raw(raw) if decode is messages.decode_error else raw)
    except (JsonRefused, MessageRefused) as refused:
        assert refused.code and refused.message.isprintable() and isinstance(refused.place, str)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80))
def test_garbage_bytes_are_refused_and_nothing_else_happens(raw: bytes) -> None:
    for decode in DECODERS:
        _survives(decode, raw)


@settings(max_examples=600, deadline=None)
@given(st.sampled_from(GOOD), st.data())
def test_damaged_messages_are_refused_or_read_and_nothing_else_happens(good: Any, data: st.DataObject) -> None:
    raw = bytearray(encoded(good[1]))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw)))
        until = data.draw(st.integers(at, min(at + 12, len(raw))))
        raw[at:until] = data.draw(
            st.binary(max_size=4) | st.sampled_from([b'"', b"{}", b"[]", b"null", b'{"a":1,"a":1}', b"1e999"])
        )
    for decode in DECODERS:
        _survives(decode, bytes(raw))


@pytest.mark.parametrize("depth", [90, 105, 111, 5_000, 100_000])
def test_deep_messages_are_refused_and_nothing_else_happens(depth: int) -> None:
    for opening, closing in [(b"[", b"]"), (b'{"entries":[', b"]}"), (b'{"ops":', b"1}")]:
        for decode in DECODERS:
            _survives(decode, opening * depth + closing * depth)
            _survives(decode, opening * depth)


def test_refusals_say_what_and_where() -> None:
    cases: list[tuple[Callable[[bytes], Any], Any, str, str, str]] = [
        (messages.decode_events, {**EVENTS, "events": [{"name": "x"}, {"name": 5}]}, "bad_field", "/events/1/name", "a text"),
        (messages.decode_events, {**EVENTS, "type": "start"}, "missing_field", "", "function"),
        (messages.decode_events, START, "wrong_type", "/type", "events"),
        (messages.decode_events, {**EVENTS, "events": [{"name": "x"}] * 1001}, "too_many", "/events", "1001"),
        (messages.decode_events, {**EVENTS, "workspace": {"app": "*", "env": "dev"}}, "bad_name", "/workspace/app", "app name"),
        (messages.decode_start, {**START, "input": "x" * (1 << 20)}, "too_large", "/input", "1048576"),
        (messages.decode_result, {**RESULT, "wait_seconds": 31}, "out_of_range", "/wait_seconds", "30"),
        (messages.decode_sync, {**SYNC, "url": "ftp://x/"}, "bad_field", "/url", "http"),
        (messages.decode_sync, {**SYNC, "url": "https://user:pw@x/"}, "bad_field", "/url", "user"),
        (messages.decode_sync, {**SYNC, "workspace": OTHERS}, "bad_field", "/manifest/workspace", "another"),
        (messages.decode_checkpoint, checkpoint(entry([]), entry([])), "duplicate_run", "/entries/1", RUN),
        (messages.decode_checkpoint, checkpoint(), "too_few", "/entries", "0 entries"),
        (messages.decode_checkpoint, checkpoint(entry([], "nope")), "bad_name", "/entries/0/run_id", "UUID"),
        (messages.decode_alive, {**ALIVE, "runs": ALIVE["runs"][:1] * 2}, "duplicate_run", "/runs/1", RUN),
        (messages.decode_alive, {**ALIVE, "process": "a\nb"}, "bad_name", "/process", "64"),
        (messages.decode_alive, {**ALIVE, "wait_seconds": 31}, "out_of_range", "/wait_seconds", "30"),
        (messages.decode_values, {**STORE, "fetch": ["v:1"]}, "bad_field", "", "either"),
        (messages.decode_values, {**STORE, "store": []}, "bad_field", "", "either"),
        (messages.decode_values, {**STORE, "store": [1, "x" * (4 << 20)]}, "too_large", "/store/1", "4194304"),
        (messages.decode_values, {**FETCH, "fetch": ["v:1", ""]}, "bad_name", "/fetch/1", "128"),
        (messages.decode_values, {**FETCH, "fetch": ["v:1"] * 1001}, "too_many", "/fetch", "1001"),
    ]  # fmt: skip
    for decode, message, code, place, words in cases:
        with pytest.raises(MessageRefused) as refused:
            decode(encoded(message))
        assert (refused.value.code, refused.value.place) == (code, place)
        assert words in refused.value.message
