"""A rolling deploy that lowers a limit: the old and the new process live side by side, and the engine is led from one to the other."""

from __future__ import annotations

from tests.scenarios.asking import SCENARIO_APP, Gate, begin, most_at_once, output, spans, starts
from tests.system.processes import free_ports, wait_until
from tests.system.system import System, open_system


def test_a_limit_that_a_rolling_deploy_lowers_stops_nothing_and_holds_from_then_on() -> None:
    with open_system(app=SCENARIO_APP, lease_seconds=5, has_proxies=True) as system:
        lower_the_limit(system)
        assert system.durable("audit")["findings"] == []


def lower_the_limit(system: System) -> None:
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
