"""Expressions over events: absent is null, nothing raises at an event, and what does not compile is refused with its place."""

from __future__ import annotations

import pytest

from engine.core.expression import ExpressionRefused, check_expression, is_true, key_text

EVENT = {"id": "1", "name": "user.created", "data": {"tenantId": "a", "n": 3, "order": {"id": "x"}, "tags": ["p"]}}


@pytest.mark.parametrize(
    ("source", "key"),
    [
        ("tenantId", '"a"'),
        ("event.data.tenantId", '"a"'),
        ("order.id", '"x"'),
        ("event.name", '"user.created"'),
        ("absent.deeply", "null"),
        ("n", "3"),
        ("tenantId + '/' + order.id", '"a/x"'),
        ("string(n) + absent", "null"),
        ("1 / 0", "null"),
        ("{true: 1}", '"{True: 1}"'),
        ("{'b': 1, 'a': 2}", '{"a":2,"b":1}'),
    ],
)
def test_keys(source: str, key: str) -> None:
    assert key_text(source, EVENT) == key


def test_without_an_expression_there_is_one_key() -> None:
    assert key_text(None, EVENT) == key_text(None, {}) == "null"


def test_the_number_1_and_the_text_1_are_two_keys() -> None:
    assert key_text("k", {"data": {"k": 1}}) != key_text("k", {"data": {"k": "1"}})


@pytest.mark.parametrize(
    ("source", "expected"),
    [("n > 2", True), ("n > 5", False), ("absent == null", True), ("absent.x == 1", False), ("n", False), ("'p' in tags", True)],
)
def test_conditions(source: str, expected: bool) -> None:
    assert is_true(source, EVENT) is expected


@pytest.mark.parametrize("data", [None, [], 7, "text"])
def test_data_of_any_kind_is_no_error(data: object) -> None:
    assert key_text("tenantId", {"data": data}) == "null"
    assert is_true("tenantId == 'a'", {"data": data}) is False


@pytest.mark.parametrize("source", ["1 +", "foo(", "a b", "x" * 2000 + "("])
def test_what_does_not_compile_is_refused(source: str) -> None:
    with pytest.raises(ExpressionRefused):
        check_expression(source)
