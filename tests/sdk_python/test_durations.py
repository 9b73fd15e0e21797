"""Lengths of time: the vectors, and what Python adds to them."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from durable.durations import DurationRefused, parse_duration
from durable.errors import RetryAfterError

VECTORS = json.loads((Path(__file__).parents[2] / "protocol" / "vectors" / "durations.json").read_text("utf-8"))


@pytest.mark.parametrize("case", VECTORS["accept"], ids=lambda case: case["text"])
def test_reads_a_text_to_the_very_same_double(case: dict[str, Any]) -> None:
    assert parse_duration(case["text"]) == case["seconds"]


@pytest.mark.parametrize("number", VECTORS["accept_numbers"])
def test_a_number_is_seconds(number: float) -> None:
    assert parse_duration(number) == number


@pytest.mark.parametrize("text", VECTORS["refuse"])
def test_refuses_every_other_text(text: str) -> None:
    with pytest.raises(DurationRefused):
        parse_duration(text)


@pytest.mark.parametrize("number", [*VECTORS["refuse_numbers"], float("nan"), float("inf"), 10**400])
def test_refuses_numbers_out_of_range(number: float) -> None:
    with pytest.raises(DurationRefused):
        parse_duration(number)


@pytest.mark.parametrize("value", [None, True, b"5m", ["5m"]])
def test_refuses_what_is_no_length_of_time_and_says_how_to_write_one(value: Any) -> None:
    with pytest.raises(DurationRefused, match="2d"):
        parse_duration(value)


def test_a_timedelta_is_its_seconds() -> None:
    assert parse_duration(timedelta(hours=1, milliseconds=5)) == 3600.005
    with pytest.raises(DurationRefused):
        parse_duration(timedelta(seconds=-1))


def test_retry_after_is_brought_between_a_second_and_a_day() -> None:
    assert [RetryAfterError(delay).delay_seconds for delay in ("10ms", "30s", "2d", timedelta(minutes=1))] == [1, 30, 86_400, 60]
