"""Wake-ups, cancellation and an unheard answer that arrive while something is under way: each takes effect once, and starts nothing twice."""

from __future__ import annotations

import json
import threading

import pytest

from tests.system.checker import assert_sound
from tests.system.processes import wait_until
from tests.system.runs import body_starts, ended_as, has_returned, output_of, start_run
from tests.system.system import System

pytestmark = [pytest.mark.postgres, pytest.mark.slow]

KILLED = 137


def test_an_event_that_comes_while_a_step_runs_is_taken_once_and_starts_no_body_again(system: System) -> None:
    run_id = start_run(system, "approval.wanted", {"n": "event", "body_seconds": 1.2}, "under-way-event")
    wait_until("the body runs and the wait is registered", lambda: body_starts(system, run_id, "ask") and _waits(system, run_id))
    system.client().send_logged("approval.given", {"n": "event", "by": "ada"}, "under-way-approval")
    assert_sound(system)
    assert json.loads(output_of(system, run_id) or "") == {"approved": {"n": "event", "by": "ada"}}
    assert [line.step_id for line in body_starts(system, run_id)] == ["ask", "after"]


def test_a_timeout_that_falls_into_a_running_step_starts_no_body_again(system: System) -> None:
    data = {"n": "timeout", "body_seconds": 1.2, "timeout_seconds": 0.3}
    run_id = start_run(system, "approval.wanted", data, "under-way-timeout")
    assert_sound(system)
    assert json.loads(output_of(system, run_id) or "") == {"approved": None}
    assert [line.step_id for line in body_starts(system, run_id)] == ["ask", "after"]


def test_a_cancelled_run_commits_nothing_more_and_starts_no_further_body(system: System) -> None:
    run_id = start_run(system, "three.wanted", {"n": "cancel", "body_seconds": 2.5}, "under-way-cancel")
    [begun] = wait_until("the body of b runs", lambda: body_starts(system, run_id, "b"))
    system.durable("run", "cancel", run_id, "--app", "shop", "--env", "dev")
    assert ended_as(system, run_id) == "cancelled", "cancelling ends the run at once"
    assert_sound(system)
    assert [line.step_id for line in body_starts(system, run_id)] == ["a", "b"]
    steps = system.query(
        "SELECT step_id FROM step WHERE run_id = $1::text::uuid AND committed_at > to_timestamp($2)", run_id, begun.at
    )
    assert not steps, f"{steps} were written after the run was cancelled"
    wait_until("the body of b is over", lambda: has_returned(system, run_id, "b", begun.pid))
    # The app's open poll tells it long before the body would have returned: no line of the handler comes after that.
    of_run = [(line.what, line.step_id, line.is_ok) for line in system.witness() if line.run_id == run_id]
    assert of_run[-2:] == [("start", "b", True), ("end", "b", False)]


def test_an_event_whose_answer_was_lost_after_the_commit_makes_one_run_set(system: System) -> None:
    system.engine().kill9()
    engine = system.start_engine(crash_at="events_committed_before_answer:1")
    sender = threading.Thread(target=system.client().send_logged, args=("three.wanted", {"n": "unheard"}, "unheard"))
    sender.start()
    assert engine.wait(30) == KILLED
    assert system.count("SELECT count(*) FROM event WHERE external_id = 'unheard'") == 1, (
        "it is stored, and the client does not know"
    )
    assert not [sent for sent in system.acknowledged() if sent["id"] == "unheard"]
    system.start_engine()
    sender.join(60)
    assert_sound(system)
    [sent] = [sent for sent in system.acknowledged() if sent["id"] == "unheard"]
    assert sent["is_duplicate"] and len(sent["runs"]) == 1
    assert system.count("SELECT count(*) FROM run JOIN event USING (event_id) WHERE external_id = 'unheard'") == 1


def _waits(system: System, run_id: str) -> int:
    return system.count("SELECT count(*) FROM wait WHERE run_id = $1::text::uuid", run_id)
