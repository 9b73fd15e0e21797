"""Matches compare as JSON does, and hash so that an index can find them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.match import hash_of_event, hash_of_match, shape_of, value_at

SCALARS = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text() | st.floats(allow_nan=False, allow_infinity=False)


@given(st.dictionaries(st.text("abc", min_size=1), SCALARS, max_size=4))
def test_an_event_made_of_the_match_fits_it(match: dict[str, Any]) -> None:
    assert hash_of_event(match, shape_of(match)) == hash_of_match(match)


@pytest.mark.parametrize(
    ("a", "b", "are_equal"),
    [
        (7, 7.0, True),
        (1, True, False),
        (0, False, False),
        ("7", 7, False),
        (None, "null", False),
        (0.5, 0.5, True),
        (-0.0, 0, True),
    ],
)
def test_values_are_equal_when_json_calls_them_equal(a: object, b: object, are_equal: bool) -> None:
    assert (hash_of_match({"x": a}) == hash_of_match({"x": b})) is are_equal


def test_an_absent_field_is_null() -> None:
    assert hash_of_event({}, ["a.b"]) == hash_of_match({"a.b": None})


@pytest.mark.parametrize("structure", [[], {}, [1], {"a": 1}])
def test_a_structure_fits_no_scalar(structure: object) -> None:
    event = hash_of_event({"x": structure}, ["x"])
    assert all(event != hash_of_match({"x": scalar}) for scalar in (None, 0, "", False, "[]", "{}"))


def test_dotted_paths_reach_inside_and_whole_keys_win() -> None:
    assert value_at({"order": {"id": 1}}, "order.id") == 1
    assert value_at({"order.id": 2, "order": {"id": 1}}, "order.id") == 2
    assert value_at([1], "0") is None


def test_the_order_of_a_match_does_not_matter() -> None:
    assert hash_of_match({"a": 1, "b": 2}) == hash_of_match({"b": 2, "a": 1})
