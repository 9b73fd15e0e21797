"""What may be a step's result: the JSON vectors as Python values, and the Python values that are no JSON."""

import base64
import dataclasses
import enum
import json
import math
import sys
import time
import uuid
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable.json_text import TypeRefused, ValueRefused, decode, encode_result
from protocol import strict_json

VECTORS = json.loads((Path(__file__).parents[2] / "protocol" / "vectors" / "json.json").read_text("utf-8"))
# Faults of a text that no Python value can have.
OF_TEXTS_ONLY = {"empty_json", "byte_order_mark", "invalid_utf8", "invalid_json", "trailing_text"}
OF_VALUES = {"not_finite", "number_overflow", "integer_range", "null_character", "lone_surrogate", "too_deep"}


def input_bytes(case: dict[str, Any]) -> bytes:
    if "text" in case:
        return str(case["text"]).encode()
    if "base64" in case:
        return base64.b64decode(case["base64"])
    return "".join(text * times for text, times in case["parts"]).encode()


def name_of(case: dict[str, Any]) -> str:
    return str(case["name"])


@pytest.mark.parametrize("case", VECTORS["accept"], ids=name_of)
def test_good_values_are_encoded_and_come_back(case: dict[str, Any]) -> None:
    value = json.loads(input_bytes(case))
    encoded = encode_result(value, where="the result")
    strict_json.check(encoded)
    assert decode(encoded) == value == json.loads(encoded)


def test_every_refused_vector_is_one_of_text_of_value_or_of_duplicate_keys() -> None:
    assert {case["code"] for case in VECTORS["refuse"]} == OF_TEXTS_ONLY | OF_VALUES | {"duplicate_key"}


def is_value(case: dict[str, Any]) -> bool:
    """Whether Python, which is lenient, reads the text at all: then its value must be refused."""
    try:
        read_leniently(case)
    except (ValueError, RecursionError):
        return False
    return case["code"] in OF_VALUES


def read_leniently(case: dict[str, Any]) -> Any:
    digits_max = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return json.loads(input_bytes(case))
    finally:
        sys.set_int_max_str_digits(digits_max)


@pytest.mark.parametrize("case", [case for case in VECTORS["refuse"] if is_value(case)], ids=name_of)
def test_bad_values_are_refused_with_the_code_and_place_of_the_vector(case: dict[str, Any]) -> None:
    value = read_leniently(case)
    with pytest.raises(ValueRefused) as refused:
        encode_result(value, where="the result")
    # Python reads 1e400 as infinity; the value has no other fault.
    assert refused.value.code == case["code"].replace("number_overflow", "not_finite")
    if len(case["place"]) < 200:
        assert refused.value.place == case["place"]


@pytest.mark.parametrize(
    "case",
    [case for case in VECTORS["refuse"] if case["code"] != "duplicate_key" and not is_value(case)],
    ids=name_of,
)
def test_payloads_that_are_no_json_are_not_decoded(case: dict[str, Any]) -> None:
    with pytest.raises(ValueRefused):
        decode(input_bytes(case))


Point = namedtuple("Point", "x y")


class Colour(enum.Enum):
    RED = "red"


class Named(enum.StrEnum):
    A = "a"


@dataclasses.dataclass
class Row:
    a: int


class Sly:
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


class Table(msgspec.Struct):
    a: int


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (datetime.now(UTC), "isoformat"),
        (date(2026, 1, 1), "isoformat"),
        (Decimal("1.5"), r"str\(value\)"),
        (uuid.uuid4(), r"str\(value\)"),
        (Path("/x"), r"str\(value\)"),
        ({1, 2}, "sorted"),
        (frozenset(), "sorted"),
        (b"x", "base64"),
        (bytearray(b"x"), "base64"),
        (Row(1), "Row"),
        (Table(1), "Table"),
        (Colour.RED, "Colour"),
        (object(), "object"),
        (Sly(), "Sly"),
        (len, "builtin"),
        (1j, "complex"),
        (msgspec.Raw(b"1"), "Raw"),
    ],
)
def test_objects_are_refused_with_their_place_and_what_to_do_instead(bad: object, words: str) -> None:
    with pytest.raises(TypeRefused, match=words) as refused:
        encode_result({"rows": [1, {"at": bad}]}, where="the result of step 'load'")
    assert refused.value.place == "/rows/1/at"
    assert "The result of step 'load' at ['rows'][1]['at'] is a" in str(refused.value)


@pytest.mark.parametrize("key", [1, None, True, 1.5, (1, 2), b"a", uuid.uuid4(), Colour.RED])
def test_keys_that_are_no_texts_are_refused(key: Any) -> None:
    with pytest.raises(TypeRefused, match="key"):
        encode_result({"a": {key: 1}}, where="the result")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ((1, (2, 3)), [1, [2, 3]]),
        (Point(1, 2), [1, 2]),
        (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        ([Named.A, {Named.A: 1}], ["a", {"a": 1}]),
        (enum.IntEnum("E", "X").X, 1),  # type: ignore[attr-defined]
        ([-0.0, 1e300, 5e-324, 0.1 + 0.2, 1234567890123456.5], [-0.0, 1e300, 5e-324, 0.1 + 0.2, 1234567890123456.5]),
        ("digits 12345678901234567890 and \\u0000 in a text", "digits 12345678901234567890 and \\u0000 in a text"),
        ([True, 1, 1.0, False, 0], [True, 1, 1.0, False, 0]),
        (2**53 - 1, 2**53 - 1),
        ("[" * 1000, "[" * 1000),
    ],
)
def test_what_is_json_under_another_name_is_taken(value: Any, expected: Any) -> None:
    encoded = encode_result(value, where="the result")
    strict_json.check(encoded)
    assert decode(encoded) == expected and repr(decode(encoded)) == repr(expected)


def test_a_value_that_holds_itself_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(ValueRefused, match="holds itself"):
        encode_result(value, where="the result")


def test_a_coroutine_that_was_not_awaited_is_named() -> None:
    async def forgotten() -> None: ...

    coroutine = forgotten()
    with pytest.raises(TypeRefused, match="not awaited"):
        encode_result(coroutine, where="the result")
    coroutine.close()


def test_a_result_over_the_limit_names_limit_and_size() -> None:
    assert len(encode_result("x" * ((4 << 20) - 2), where="the result")) == 4 << 20
    with pytest.raises(ValueRefused, match=r"4,194,305 bytes as JSON; 4,194,304 are allowed") as refused:
        encode_result("x" * ((4 << 20) - 1), where="the result")
    assert refused.value.code == "too_large"


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.text(st.characters(codec=None))
    | st.binary()
    | st.dates(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.tuples(inner, inner),
    max_leaves=12,
)


@given(ANYTHING)
def test_whatever_is_encoded_is_good_json_and_equal_to_what_went_in(value: Any) -> None:
    try:
        encoded = encode_result(value, where="the result")
    except (TypeRefused, ValueRefused):
        assert not is_json(value)
        return
    assert is_json(value)
    strict_json.check(encoded)
    assert decode(encoded) == as_lists(value)


def is_json(value: Any) -> bool:
    """A second, plain statement of the rule."""
    match value:
        case None | bool():
            return True
        case str():
            return "\0" not in value and not any(0xD800 <= ord(character) <= 0xDFFF for character in value)
        case int():
            return abs(value) < 2**53
        case float():
            return math.isfinite(value)
        case dict():
            return all(isinstance(key, str) and is_json(key) and is_json(item) for key, item in value.items())
        case list() | tuple():
            return all(map(is_json, value))
    return False


def as_lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: as_lists(item) for key, item in value.items()}
    return [as_lists(item) for item in value] if isinstance(value, list | tuple) else value


def test_good_values_are_checked_in_c_and_not_node_by_node() -> None:
    rows = [{"id": index, "name": f"name {index}", "tags": ["a", "b"], "price": index / 7} for index in range(5_000)]
    # The standard library's own encoder as the measure: it checks nothing of this.
    assert best_seconds(lambda: encode_result(rows, where="the result")) < 4 * best_seconds(lambda: json.dumps(rows))


def best_seconds(call: Callable[[], object]) -> float:
    def once() -> float:
        started = time.perf_counter()
        call()
        return time.perf_counter() - started

    return min(once() for _ in range(7))
