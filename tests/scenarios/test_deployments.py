"""Code that changes under its runs: steps of another kind, new and lost steps, and a removed function.

The app is replaced as deploys do it: the old process finishes what it has and ends, the new one has another DURABLE_DEPLOYMENT.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.scenarios.asking import (
    SCENARIO_APP,
    begin,
    ended,
    output,
    send,
    shown,
    stands,
    starts,
    step_of,
    waits_at,
)
from tests.system.processes import wait_until
from tests.system.system import System, open_system


@pytest.fixture(scope="module")
def system() -> Iterator[System]:
    with open_system(app=SCENARIO_APP, lease_seconds=5) as opened:
        yield opened
        audit = opened.durable("audit")
        assert audit["count"] == 0, audit["findings"]


@pytest.fixture(autouse=True)
def first_deployment(system: System) -> None:
    """Each scenario begins with the same code, whatever the one before left."""
    if deployment(system) != "first":
        deploy(system, "first")


def deployment(system: System) -> str:
    [row] = system.query("SELECT deployment FROM app")
    return str(row["deployment"])


def deploy(system: System, code: str) -> None:
    """End the app, start it with this code, and wait until the engine has seen it."""
    assert deployment(system) != code, "it would not be seen when the new process is there"
    system.app.terminate()
    system.app.wait(30)
    system.start_app(SCENARIO_APP, SCENARIO_CODE=code, DURABLE_DEPLOYMENT=code)
    wait_until(f"the engine knows the deployment {code}", lambda: deployment(system) == code)


def test_a_step_that_changed_its_kind_is_a_code_mismatch_until_the_fitting_code_is_back(system: System) -> None:
    run_id = begin(system, "change.wanted", {"n": "changed"})
    waits_at(system, run_id, "go")
    deploy(system, "mismatch")
    send(system, "change.continued", {"n": "changed"})

    def mismatches(run: Any) -> list[str]:
        return [invocation["detail"] for invocation in run["invocations"] if "code_mismatch" in str(invocation["detail"])]

    # The function has one retry; more mismatches than that do not end the run, because a rolling deploy mixes old and new code.
    run = stands(
        system, run_id, lambda run: len(mismatches(run)) >= 3 or run["status"] == "failed", "the new code has met the old memo"
    )
    assert run["status"] != "failed", f"a mismatch spends no retries: {run}"
    assert "begin" in mismatches(run)[0], "it names the step"
    deploy(system, "first")
    assert output(system, run_id) == "first"
    run = ended(system, run_id)
    memo = [(step["id"], step["kind"], step["data"]) for step in run["steps"] if step["kind"] == "step"]
    assert memo == [("begin", "step", 1), ("end", "step", "first")], "no result was given to another step"
    assert len(starts(system, run_id, "begin")) == 1


def test_new_runs_of_changed_code_run_while_old_ones_do_not_fit(system: System) -> None:
    deploy(system, "mismatch")
    run_id = begin(system, "change.wanted", {"n": "new"})
    waits_at(system, run_id, "go")
    send(system, "change.continued", {"n": "new"})
    assert output(system, run_id) == "mismatch"
    assert step_of(ended(system, run_id), "begin")["kind"] == "sleep"


def test_steps_that_code_lost_are_ignored_and_steps_that_it_gained_are_run(system: System) -> None:
    run_id = begin(system, "growth.wanted", {"n": "growth"})
    waits_at(system, run_id, "go")
    deploy(system, "grown")
    send(system, "growth.continued", {"n": "growth"})
    assert output(system, run_id) == "grown"
    steps = [step["id"] for step in ended(system, run_id)["steps"]]
    assert steps == ["old", "go", "new-before", "new-after", "end"]
    assert [len(starts(system, run_id, step)) for step in ("old", "new-before", "new-after", "end")] == [1, 1, 1, 1]


def test_runs_of_a_removed_function_are_held_with_the_reason_and_go_on_when_it_returns(system: System) -> None:
    waiting = begin(system, "leave.wanted", {"n": "leave"})
    waits_at(system, waiting, "go")
    deploy(system, "removed")
    send(system, "leave.continued", {"n": "leave"})
    assert send(system, "leave.wanted", {"n": "nobody"}) == [], "a removed function has no triggers"
    run = stands(system, waiting, lambda run: run["status"] == "queued" and run["why"], "the run is held")
    assert "leaving" in run["why"], run["why"]
    assert "removed" in run["why"] or "not have" in run["why"] or "no longer" in run["why"], run["why"]
    # Time for it to be claimed by mistake: another run of the same app goes through.
    assert output(system, begin(system, "double.wanted", {"n": 2}))["twice"] == 4
    assert shown(system, waiting)["status"] == "queued"
    deploy(system, "first")
    assert output(system, waiting) == "first"
    assert len(starts(system, waiting, "before")) == 1
