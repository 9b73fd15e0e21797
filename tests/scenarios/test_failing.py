"""Failures: which are tried again, when, what is recorded of them, and how the run ends."""

from __future__ import annotations

from tests.scenarios.asking import begin, ended, output, starts, step_of
from tests.system.system import System


def test_a_step_that_succeeds_at_last_keeps_its_failed_attempts(system: System) -> None:
    run_id = begin(system, "charge.wanted", {"failures": 2})
    assert output(system, run_id) == {"charged": "charged at attempt 3"}
    charge = step_of(ended(system, run_id), "charge")
    assert (charge["status"], charge["attempt"], len(charge["failed_attempts"])) == ("completed", 3, 2)
    assert all("CardDeclined" in tried["error"]["stack"] for tried in charge["failed_attempts"])


def test_a_body_that_says_that_no_retry_helps_is_not_tried_again(system: System) -> None:
    run_id = begin(system, "card.checked", {})
    run = ended(system, run_id)
    assert run["status"] == "failed"
    assert run["error"]["code"] == "expired" and "the card has expired" in run["error"]["message"]
    # The function that did not catch it is tried again; the body is not, in any of its tries.
    assert [line.attempt for line in starts(system, run_id)] == [1]
    assert len(step_of(run, "check")["failed_attempts"]) == 1


def test_a_handler_that_says_that_no_retry_helps_fails_the_run_at_once(system: System) -> None:
    run = ended(system, begin(system, "order.impossible", {}))
    assert (run["status"], run["error"]["message"], len(run["invocations"])) == ("failed", "there is no such shop", 1)


def test_an_error_that_says_when_to_come_back_is_obeyed(system: System) -> None:
    run_id = begin(system, "busy.called", {"seconds": 1.4})
    assert output(system, run_id) == 2
    first, second = starts(system, run_id)
    assert second.at - first.at >= 1.4, "the backoff of the step alone would be 0.1 s"


def test_an_error_outside_of_steps_is_retried_and_then_fails_the_run_with_its_cause(system: System) -> None:
    run_id = begin(system, "shelf.looked.at", {})
    ended(system, run_id)
    run = system.durable("run", "show", run_id)
    assert run["status"] == "failed"
    assert run["error"]["name"] == "RuntimeError" and run["error"]["message"] == "the shelf is empty, attempt 3"
    assert "KeyError: 'shelf'" in run["error"]["stack"] and "scenario_app.py" in run["error"]["stack"]
    assert [invocation["attempt"] for invocation in run["invocations"]] == [1, 2, 3]
    assert len(starts(system, run_id, "look")) == 1, "the step before is remembered"


def test_an_error_outside_of_steps_that_passes_leaves_a_completed_run(system: System) -> None:
    run_id = begin(system, "second.try", {})
    assert output(system, run_id) == 2
    assert len(starts(system, run_id, "look")) == 1
