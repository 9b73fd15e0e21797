"""Steps in Trio nurseries, on hypercorn's Trio worker."""

from __future__ import annotations

from tests.scenarios.asking import SCENARIO_APP, begin, ended, most_at_once, output, spans, starts
from tests.system.system import open_system


def test_a_nursery_runs_its_steps_at_once_and_gives_up_what_it_cancels() -> None:
    with open_system(app=SCENARIO_APP, app_worker="trio", lease_seconds=5) as system:
        run_id = begin(system, "nursery.wanted", {})
        assert output(system, run_id) == ["a", "b", "c", "last"]
        bodies = [span for step in "abc" for span in spans(system, [run_id], step)]
        assert len(bodies) == 3 and most_at_once(bodies) == 3
        assert len(starts(system, run_id)) == 5
        statuses = {step["id"]: step["status"] for step in ended(system, run_id)["steps"]}
        assert statuses["never"] == "abandoned" and statuses["wins"] == "completed"
        assert system.durable("audit")["findings"] == []
