"""Steps side by side and in great numbers, repeated and ambiguous ids, and results as big as they may be."""

from __future__ import annotations

import hashlib
import json

from tests.scenarios.asking import begin, ended, most_at_once, output, send, spans, starts, step_of, waits_at
from tests.scenarios.scenario_app import big_text
from tests.system.system import System

MIB = 1 << 20


def test_three_gathered_steps_run_at_once_and_each_once(system: System) -> None:
    run_id = begin(system, "gather.wanted", {})
    assert output(system, run_id) == ["a", "b", "c", "last"]
    bodies = [span for step in "abc" for span in spans(system, [run_id], step)]
    assert len(bodies) == 3 and most_at_once(bodies) == 3
    assert len(starts(system, run_id)) == 4


def test_a_wait_whose_task_group_failed_is_given_up_and_takes_no_event(system: System) -> None:
    run_id = begin(system, "group.wanted", {"n": "group"})
    run = waits_at(system, run_id, "later")
    assert {step["id"]: step["status"] for step in run["steps"]} == {"fails": "failed", "never": "abandoned", "later": "waiting"}
    send(system, "group.joined", {"n": "group"})
    got = output(system, run_id)
    assert got["joined"] == "group" and "the card has expired" in got["errors"][0]


def test_as_many_as_a_hundred_steps_side_by_side_run_once_each(system: System) -> None:
    run_id = begin(system, "many.wanted", {"count": 100})
    assert output(system, run_id) == sum(range(100))
    assert sorted(line.step_id for line in starts(system, run_id)) == sorted(f"part-{n}" for n in range(100))


def test_a_run_of_three_hundred_steps_of_one_id_counts_them(system: System) -> None:
    run_id = begin(system, "row.wanted", {"count": 300})
    assert output(system, run_id) == list(range(300))
    steps = ended(system, run_id)["steps"]
    assert [step["id"] for step in steps] == ["count", *(f"count#{n}" for n in range(2, 301))]
    assert [step["position"] for step in steps] == list(range(1, 301))


def test_the_same_id_open_twice_is_an_error_that_names_it(system: System) -> None:
    run = ended(system, begin(system, "twins.wanted", {}))
    assert run["status"] == "failed"
    assert "ambiguous_step_id" in json.dumps(run["error"]), run["error"]
    assert "twin" in run["error"]["message"] or "twin" in run["error"]["stack"]


def test_a_big_result_comes_back_byte_for_byte(system: System) -> None:
    handle = system.client().start_sync("carrying", {"bytes": 3 * MIB})
    text = handle.result_sync(60)
    made = big_text(3 * MIB)
    assert hashlib.sha256(text.encode()).digest() == hashlib.sha256(made.encode()).digest()
    run = ended(system, handle.run_id)
    assert step_of(run, "make")["data"] == made, "also after it went to another invocation"
    assert len(run["invocations"]) >= 2


def test_a_result_beyond_the_limit_is_refused_with_the_limit_the_size_and_what_to_do(system: System) -> None:
    run = ended(system, begin(system, "big.wanted", {"bytes": 5 * MIB}))
    assert run["status"] == "failed"
    message = run["error"]["message"]
    assert "4 MiB" in message or "4,194,304" in message or "4194304" in message, message
    assert "5,242,8" in message or "52428" in message or "5 MiB" in message, message
    assert len(step_of(run, "make")["failed_attempts"]) == 1, "another try would make the same"
    assert len(message) < 1_000, "the words, not the result"
