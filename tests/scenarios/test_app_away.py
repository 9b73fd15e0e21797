"""The app is away while events come: they are kept, and delivered when it is back."""

from __future__ import annotations

from tests.scenarios.asking import SCENARIO_APP, begin, ended, output, send, stands, step_of, waits_at
from tests.system.system import System


def test_events_that_come_while_the_app_is_away_are_kept_and_delivered_without_counting_attempts(system: System) -> None:
    assert output(system, begin(system, "double.wanted", {"n": 1}))["twice"] == 2
    system.app.kill9()
    run_ids = [begin(system, "double.wanted", {"n": n}) for n in range(10)]
    # A delivery that is under way at this moment shows the run as running.
    held = stands(
        system,
        run_ids[0],
        lambda run: run["status"] == "queued" and len(run["invocations"]) >= 2,
        "two deliveries were tried in vain",
    )
    assert held["why"]
    assert {invocation["outcome"] for invocation in held["invocations"]} == {"undelivered"}
    system.start_app(SCENARIO_APP)
    assert [output(system, run_id)["twice"] for run_id in run_ids] == [n * 2 for n in range(10)]
    for run_id in run_ids:
        run = ended(system, run_id)
        assert {invocation["attempt"] for invocation in run["invocations"]} == {1}
        assert step_of(run, "double").get("attempt", 1) == 1 and not step_of(run, "double").get("failed_attempts")


def test_a_wait_whose_event_comes_while_the_app_is_away_is_delivered_when_it_is_back(system: System) -> None:
    run_id = begin(system, "user.created", {"id": "away", "cooldown": 0, "approval_timeout": "1h"})
    waits_at(system, run_id, "approve")
    system.app.kill9()
    send(system, "approval.received", {"userId": "away", "by": "Grace"})
    stands(system, run_id, lambda run: run["status"] != "waiting", "the event has ended the wait")
    system.start_app(SCENARIO_APP)
    assert output(system, run_id) == {"approved": True, "by": "Grace"}
    assert {invocation["attempt"] for invocation in ended(system, run_id)["invocations"]} == {1}
