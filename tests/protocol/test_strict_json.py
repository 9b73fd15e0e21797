"""Strict JSON: the vectors, the two roads that must agree, an independent judge, garbage, and its speed."""

import json
import math
import time
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from protocol.find_json_fault import find_fault
from protocol.messages import decode_start
from protocol.strict_json import JsonRefused, _is_plainly_good, check
from tests.protocol.vector_files import input_bytes, load, named

VECTORS = load("json.json")
START = b'{"type":"start","workspace":{"app":"a","env":"dev"},"function":"f","input":%s}'
CODES = {
    "empty_json", "byte_order_mark", "invalid_utf8", "invalid_json", "trailing_text", "duplicate_key", "not_finite",
    "number_overflow", "integer_range", "null_character", "lone_surrogate", "too_deep",
}  # fmt: skip


@pytest.mark.parametrize("case", **named(VECTORS["accept"]))
def test_good_json_is_accepted_and_comes_back_byte_for_byte(case: dict[str, Any]) -> None:
    raw = input_bytes(case)
    check(raw)
    check(raw.decode())
    assert bytes(decode_start(START % raw).input) == raw.strip(b" \t\r\n")


@pytest.mark.parametrize("case", **named(VECTORS["refuse"]))
def test_bad_json_is_refused_with_code_and_place(case: dict[str, Any]) -> None:
    with pytest.raises(JsonRefused) as refused:
        check(input_bytes(case))
    fault = refused.value
    place = case["place"] if len(case["place"]) <= 300 else case["place"][:299] + "…"
    assert (fault.code, fault.place, fault.offset) == (case["code"], place, case["offset"])
    assert len(fault.message) < 700 and fault.message.isprintable()


def test_every_code_has_a_vector() -> None:
    assert {case["code"] for case in VECTORS["refuse"]} == CODES


# Texts near the border of what is allowed: JSON, with tokens that are wrong somewhere mixed in.
scalars = st.sampled_from(
    ["1", "-0", "9007199254740991", "9007199254740992", "-9007199254740993", "1e308", "1e309", "-1E999", "0.1", "01",
     "true", "null", "NaN", "-Infinity", '"a"', '"\\u0000"', '"\\\\u0000"', '"\\ud800"', '"\\ud83d\\ude00"', '"\\\\ud83d"',
     '"\\ud83d\\\\ude00"', '"\\\\\\ud83d\\ude00"', '"\\ude00\\ud83d"', '"[{"', '"\\"]"', '"é"', '"\x01"',
     '"\ud800"', '"\\x"', "", "tru"]
)  # fmt: skip
keys = st.sampled_from(['"a"', '"\\u0061"', '"b"', '"~/"', '"\\u0000"', '"\\udc00"', "a", '""'])
texts = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda each: "[" + ", ".join(each) + "]")
        | st.lists(st.tuples(keys, inner), max_size=3).map(
            lambda each: "{" + ",".join(f"{key}: {value}" for key, value in each) + "}"
        )
    ),
    max_leaves=8,
)


def verdicts(raw: bytes | str, max_depth: int) -> tuple[bool, bool, JsonRefused | None]:
    try:
        check(raw, max_depth=max_depth)
        is_accepted = True
    except JsonRefused:
        is_accepted = False
    return is_accepted, _is_plainly_good(raw, max_depth), find_fault(raw, max_depth=max_depth)


@settings(max_examples=400, deadline=None)
@given(texts, st.integers(0, 4), st.sampled_from(["", " ", "]", ",1", "\ufeff"]))
@example('"\\ud83d\\\\ude00"', 100, "")
def test_the_fast_road_never_accepts_what_the_slow_one_refuses(text: str, max_depth: int, tail: str) -> None:
    text += tail
    for raw in (text, text.encode("utf-8", "surrogatepass")):
        is_accepted, is_plainly_good, fault = verdicts(raw, max_depth)
        assert is_accepted == (fault is None)
        assert not (is_plainly_good and fault is not None)


plain_texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
numbers = st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | plain_texts,
    lambda inner: st.lists(inner) | st.dictionaries(plain_texts, inner),
    max_leaves=12,
)


@settings(deadline=None)
@given(values, st.booleans(), st.sampled_from([None, 1]))
def test_whatever_an_ordinary_encoder_writes_is_accepted_on_both_roads(
    value: Any, ensure_ascii: bool, indent: int | None
) -> None:
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)
    assert verdicts(text.encode(), 100)[0] and verdicts(text, 100)[2] is None
    assert bytes(decode_start(START % text.encode()).input) == text.encode()


def _plain_reading(raw: bytes) -> Any:
    """An independent judge, slow and simple: ValueError when something must be refused."""

    def pairs(each: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(each)) != len(each):
            raise ValueError("duplicate")
        return dict(each)

    def integer(text: str) -> int:
        if len(text) > 20 or abs(int(text)) > 2**53 - 1:
            raise ValueError("integer")
        return int(text)

    def real(text: str) -> float:
        if math.isinf(float(text)):
            raise ValueError("overflow")
        return float(text)

    def constant(text: str) -> float:
        raise ValueError(text)

    value = json.loads(raw.decode(), object_pairs_hook=pairs, parse_int=integer, parse_float=real, parse_constant=constant)

    def walk(each: Any, depth: int) -> None:
        if isinstance(each, str):
            each.encode()
            if "\0" in each:
                raise ValueError("null")
        elif isinstance(each, list | dict):
            if depth == 3:
                raise ValueError("depth")
            for item in each:
                walk(item, depth + 1)
            if isinstance(each, dict):
                for item in each.values():
                    walk(item, depth + 1)

    walk(value, 0)
    return value


@settings(max_examples=400, deadline=None)
@given(texts)
def test_an_independent_reading_agrees(text: str) -> None:
    raw = text.encode("utf-8", "surrogatepass")
    try:
        _plain_reading(raw)
        is_good = True
    except ValueError:
        is_good = False
    assert verdicts(raw, 3)[0] is is_good


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=60) | st.text('[]{}",:\\u0d8ec1-+.eE \n', max_size=40).map(str.encode))
def test_garbage_is_refused_or_accepted_and_nothing_else_happens(raw: bytes) -> None:
    is_accepted, is_plainly_good, fault = verdicts(raw, 5)
    assert is_accepted == (fault is None)
    assert not (is_plainly_good and fault)
    if fault is not None:
        assert fault.code in CODES and 0 <= fault.offset <= len(raw)


@pytest.mark.parametrize("opening", ["[", '{"a":', '[{"a":'])
def test_a_hundred_thousand_open_brackets_do_not_reach_the_recursion_limit(opening: str) -> None:
    raw = opening.encode() * 100_000
    with pytest.raises(JsonRefused) as refused:
        check(raw)
    assert refused.value.code == "too_deep"
    fault = find_fault(raw, max_depth=10**6)
    assert fault is not None and fault.code == "invalid_json" and fault.offset == len(raw)


def _best_seconds(raw: bytes, times: int) -> float:
    def once() -> float:
        begun = time.perf_counter()
        check(raw)
        return time.perf_counter() - begun

    return min(once() for _ in range(times))


def test_a_small_event_costs_microseconds_and_a_large_one_milliseconds() -> None:
    # Ten times the goals (15 µs; 60 ms for 1 MiB), so that only another order of cost fails on a busy machine.
    small = json.dumps({"type": "events", "events": [{"name": "user.created", "data": {"id": 1, "plan": 1.5}}] * 3}).encode()
    large = json.dumps([{"id": i, "name": f"user {i}", "tags": ["a", "é"], "x": i / 7} for i in range(15_000)]).encode()
    assert len(small) < 250 and len(large) > 1_000_000
    assert _best_seconds(small, 200) < 150e-6
    assert _best_seconds(large, 3) < 0.6
