"""Sleeps are never early and are slept once; events before the wait count, each for one wait."""

from __future__ import annotations

from tests.scenarios.asking import Gate, begin, ended, output, send, shown, starts, step_of
from tests.system.processes import wait_until
from tests.system.system import System


def test_sleep_and_sleep_until_are_never_early_and_are_slept_once(system: System) -> None:
    run_id = begin(system, "nap.wanted", {"seconds": 0.7})
    times = output(system, run_id)
    assert times["b"] - times["a"] >= 0.7
    assert times["c"] >= times["until"]
    run = ended(system, run_id)
    assert [(step["id"], step["kind"]) for step in run["steps"]] == [
        ("a", "step"), ("nap", "sleep"), ("b", "step"), ("until", "sleep"), ("c", "step"), ("long-ago", "sleep"),
    ]  # fmt: skip
    # Each of the sleeps ended an invocation. What was slept before is in the memo: nothing runs and nothing is slept again.
    assert len(run["invocations"]) >= 3
    assert [len(starts(system, run_id, step)) for step in "abc"] == [1, 1, 1]
    assert system.count("SELECT count(*) FROM wait WHERE run_id = $1::text::uuid", run_id) == 0


def test_an_approval_that_is_sent_before_its_wait_is_registered_is_not_missed(system: System) -> None:
    gate = Gate(system)
    run_id = begin(system, "question.asked", {"n": "lookback", "gate": str(gate)})
    wait_until("the body that asks runs", lambda: starts(system, run_id, "ask"))
    send(system, "question.answered", {"n": "another", "text": "of another"})
    send(system, "question.answered", {"n": "lookback", "text": "one"})
    send(system, "question.answered", {"n": "lookback", "text": "two"})
    assert not system.query("SELECT 1 FROM wait WHERE run_id = $1::text::uuid", run_id), "nothing may wait yet"
    gate.open()
    assert output(system, run_id) == ["one", "two"]
    run = ended(system, run_id)
    assert [step["id"] for step in run["steps"]] == ["ask", "answer", "answer#2"]
    assert step_of(run, "answer")["data"]["data"]["text"] == "one"


def test_an_answer_from_before_the_run_does_not_count(system: System) -> None:
    send(system, "question.answered", {"n": "too early", "text": "stale"})
    gate = Gate(system)
    gate.open()
    run_id = begin(system, "question.asked", {"n": "too early", "gate": str(gate)})
    wait_until("it waits", lambda: any(step["status"] == "waiting" for step in shown(system, run_id)["steps"]))
    send(system, "question.answered", {"n": "too early", "text": "fresh"})
    assert output(system, run_id) == ["fresh", None]


def test_one_event_ends_the_waits_of_many_runs_once_each(system: System) -> None:
    gate = Gate(system)
    gate.open()
    run_ids = [begin(system, "question.asked", {"n": "all", "gate": str(gate)}) for _ in range(5)]
    for run_id in run_ids:
        wait_until("it waits", lambda run_id=run_id: any(step["status"] == "waiting" for step in shown(system, run_id)["steps"]))
    send(system, "question.answered", {"n": "all", "text": "for all"})
    assert [output(system, run_id) for run_id in run_ids] == [["for all", None]] * 5
