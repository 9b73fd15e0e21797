"""The vectors of names, step ids and durations against the package."""

import contextlib
import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import names
from protocol.durations import DurationRefused, format_duration, parse_duration
from tests.protocol.vector_files import load

NAMES = load("names.json")
STEP_IDS = load("step_ids.json")
DURATIONS = load("durations.json")
RULES = {
    "app": names.app_problem,
    "environment": names.environment_problem,
    "function_id": names.function_problem,
    "event_name": names.event_name_problem,
    "step_id": names.step_id_problem,
    "wire_step_id": names.wire_step_id_problem,
    "run_id": names.run_problem,
}


@pytest.mark.parametrize("kind", RULES)
def test_names_are_accepted_and_refused_as_the_vectors_say(kind: str) -> None:
    cases, rule = NAMES[kind], RULES[kind]
    for text in cases["accept"] + [part * times for part, times in cases["accept_repeat"]]:
        assert rule(text) is None, text
    for text in cases["refuse"] + [part * times for part, times in cases["refuse_repeat"]]:
        problem = rule(text)
        assert problem is not None and problem.isprintable() and len(problem) < 250, text


def test_every_kind_of_name_has_vectors() -> None:
    assert set(NAMES) == {"about", *RULES}


def test_a_workspace_is_an_app_and_an_environment() -> None:
    assert names.split_workspace("shop/dev") == ("shop", "dev")
    assert names.split_workspace("*/dev") == ("*", "dev")
    for text in ["", "shop", "shop/", "/dev", "shop/dev/x", "Shop/dev", "shop/*", "**/dev", "shop/dev\n"]:
        assert names.split_workspace(text) is None, text


@given(st.text(max_size=300))
def test_the_rules_take_any_text(text: str) -> None:
    for rule in RULES.values():
        problem = rule(text)
        assert problem is None or problem.isprintable()


@pytest.mark.parametrize("case", STEP_IDS["calls"])
def test_repeats_are_counted_in_call_order_and_travel(case: dict[str, Any]) -> None:
    counts: Counter[str] = Counter()
    got = []
    for step_id in case["calls"]:
        counts[step_id] += 1
        got.append(step_id if counts[step_id] == 1 else f"{step_id}#{counts[step_id]}")
    assert got == case["names"]
    assert all(names.wire_step_id_problem(name) is None for name in got)


@pytest.mark.parametrize("case", STEP_IDS["concurrent"], ids=lambda case: case["name"])
def test_an_id_that_is_open_twice_is_ambiguous(case: dict[str, Any]) -> None:
    open_ids: set[str] = set()
    counts: Counter[str] = Counter()
    got, error = [], None
    for what, step_id in case["events"]:
        if what == "over":
            open_ids.remove(step_id)
        elif step_id in open_ids:
            error = "ambiguous_step_id"
            break
        else:
            open_ids.add(step_id)
            counts[step_id] += 1
            got.append(step_id if counts[step_id] == 1 else f"{step_id}#{counts[step_id]}")
    assert (got, error) == (case["names"], case["error"])


def test_ids_that_users_may_not_write_are_refused() -> None:
    for text in STEP_IDS["refuse"]:
        assert names.step_id_problem(text) is not None, text


def test_durations_are_read_to_the_same_double_everywhere() -> None:
    for case in DURATIONS["accept"]:
        assert parse_duration(case["text"]) == case["seconds"], case
    for number in DURATIONS["accept_numbers"]:
        assert parse_duration(number) == number


def test_what_is_no_duration_is_refused_in_words() -> None:
    for value in [*DURATIONS["refuse"], *DURATIONS["refuse_numbers"], math.nan, math.inf, True, None, [1], b"5m"]:
        with pytest.raises(DurationRefused) as refused:
            parse_duration(value)
        assert len(str(refused.value)) > 20


def test_durations_are_written_as_the_vectors_say() -> None:
    for case in DURATIONS["format"]:
        assert format_duration(case["seconds"]) == case["text"]
        assert parse_duration(case["text"]) == case["seconds"]
    for seconds in (-1, math.nan, math.inf, 1e300):
        with pytest.raises(DurationRefused):
            format_duration(seconds)


@given(st.integers(0, 3_153_600_000_000_000))
def test_what_is_written_reads_back_to_the_microsecond(microseconds: int) -> None:
    seconds = microseconds / 1_000_000
    assert parse_duration(format_duration(seconds)) == seconds


@given(st.text("0123456789.wdhms +-", max_size=12) | st.text(max_size=12))
def test_any_text_is_a_duration_or_refused(text: str) -> None:
    with contextlib.suppress(DurationRefused):
        assert 0 <= parse_duration(text) <= 3_153_600_000
