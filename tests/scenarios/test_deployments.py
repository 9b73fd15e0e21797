"""Code that changes under its runs: steps of another kind, new and old steps, a removed function, and a lowered limit.

The app is replaced as deploys do it: the old process ends and the new one has another DURABLE_DEPLOYMENT; for the lowered limit both
live side by side, as in a rolling deploy.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.scenarios.asking import (
    SCENARIO_APP,
    Gate,
    begin,
    ended,
    most_at_once,
    output,
    send,
    shown,
    spans,
    stands,
    starts,
    step_of,
    waits_at,
)
from tests.system.processes import free_ports, wait_until
from tests.system.system import System, open_system


@pytest.fixture(scope="module")
def system() -> Iterator[System]:
    with open_system(app=SCENARIO_APP, lease_seconds=5, has_proxies=True) as opened:
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
    assert system.to_app is not None
    system.app.kill9()
    # As they are without a proxy: the connections that the engine keeps end with their process.
    system.to_app.drop_connections()
    system.start_app(SCENARIO_APP, SCENARIO_CODE=code, DURABLE_DEPLOYMENT=code)
    system.to_app.target = system.app_port
    wait_until(f"the engine knows the deployment {code}", lambda: deployment(system) == code)


def test_a_step_that_changed_its_kind_is_a_code_mismatch_and_the_old_code_ends_the_run(system: System) -> None:
    deploy(system, "first")
    failing, saved = (begin(system, "change.wanted", {"n": f"change-{n}"}) for n in range(2))
    for run_id in (failing, saved):
        waits_at(system, run_id, "go")
    deploy(system, "mismatch")
    send(system, "change.continued", {"n": "change-0"})

    def has_failed_once(run: object) -> bool:
        return "begin" in str(run["invocations"][-1]["detail"]) or run["status"] == "failed"  # type: ignore[index]

    run = stands(system, failing, has_failed_once, "the new code has met the old memo")
    words = str(run["error"]) + str(run["invocations"])
    assert "code_mismatch" in words and "begin" in words, run
    deploy(system, "first")
    send(system, "change.continued", {"n": "change-1"})
    assert output(system, saved) == "first"
    assert step_of(ended(system, saved), "begin")["kind"] == "step", "no result was given to another step"
    assert len(starts(system, saved, "begin")) == 1


def test_a_mismatch_of_a_rolling_deploy_passes_when_the_fitting_code_is_back(system: System) -> None:
    run_id = begin(system, "change.wanted", {"n": "rolling"})
    waits_at(system, run_id, "go")
    deploy(system, "mismatch")
    send(system, "change.continued", {"n": "rolling"})
    stands(system, run_id, lambda run: len(run["invocations"]) >= 2 or run["status"] == "failed", "the new code has had it")
    deploy(system, "first")
    run = ended(system, run_id)
    assert run["status"] == "completed", f"a mismatch is retried without spending the {1} retry that the function has: {run}"


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


def test_a_limit_that_a_rolling_deploy_lowers_stops_nothing_and_holds_from_then_on(system: System) -> None:
    assert system.to_app is not None
    gate = Gate(system)
    run_ids = [begin(system, "lowered.wanted", {"tenant": "low", "gate": str(gate)}) for _ in range(6)]
    wait_until("two bodies run", lambda: sum(len(starts(system, run_id)) for run_id in run_ids) == 2)
    [port] = free_ports(1)
    lowered = system.start_app(SCENARIO_APP, name="app2", port=port, SCENARIO_CODE="lowered", DURABLE_DEPLOYMENT="lowered")
    try:
        system.to_app.target = port
        # Connections that the engine keeps still lead to the old process; a manifest asked there says the old limit.
        wait_until("the engine knows the lowered limit", lambda: _limit(system) == 1)
        assert sum(len(starts(system, run_id)) for run_id in run_ids) == 2, "what runs goes on, nothing is added"
        gate.open()
        assert [output(system, run_id) for run_id in run_ids] == [str(gate)] * 6
        bodies = spans(system, run_ids, "work")
        assert len(bodies) == 6
        assert most_at_once(bodies[:2]) == 2 and most_at_once(bodies[2:]) == 1
        assert bodies[2][0] >= max(end for _, end, _ in bodies[:2]), "the third only when both of before have ended"
    finally:
        system.to_app.target = system.app_port
        lowered.kill9()


def _limit(system: System) -> int:
    return system.count(
        "SELECT l.slots FROM concurrency_limit AS l JOIN function USING (function_id) WHERE name = 'lowered' AND in_force"
    )
