"""What `durable engine tasks` shows: every run in flight and every near deadline stands under its nursery."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.request import Request, urlopen

import pytest

from tests.system.processes import wait_until
from tests.system.runs import body_starts, start_run
from tests.system.system import System, open_system

pytestmark = [pytest.mark.postgres]


@pytest.fixture(scope="module")
def system() -> Iterator[System]:
    with open_system() as opened:
        yield opened


def task_tree(system: System) -> dict[str, Any]:
    """By HTTP: a near alarm would have rung before a command has started."""
    token = (system.place / "home" / "dev.token").read_text().strip() if not system.token else system.token
    asked = Request(f"{system.engine_url()}/v1/engine/tasks", headers={"authorization": f"Bearer {token}"})
    with urlopen(asked, timeout=10) as answer:
        return json.load(answer)  # type: ignore[no-any-return]


def nursery_of(tree: dict[str, Any], name: str) -> dict[str, Any] | None:
    """The first nursery of that name, anywhere in the tree."""
    for nursery in tree["nurseries"]:
        if nursery["name"] == name:
            return nursery  # type: ignore[no-any-return]
        for task in nursery["tasks"]:
            if (found := nursery_of(task, name)) is not None:
                return found
    return None


def task_names(system: System, nursery: str) -> list[str]:
    found = nursery_of(task_tree(system), nursery)
    assert found is not None, f"no nursery {nursery}"
    return [task["name"] for task in found["tasks"]]


def invocation_names(system: System) -> list[str]:
    """The tasks of all calls in the inflight nursery: each stands under the call in which it travels."""
    inflight = nursery_of(task_tree(system), "inflight")
    assert inflight is not None
    calls = [task for task in inflight["tasks"] if task["name"].startswith("call shop/dev, ")]
    nurseries = [nursery for call in calls for nursery in call["nurseries"] if nursery["name"] == "invocations"]
    return [task["name"] for nursery in nurseries for task in nursery["tasks"]]


def test_a_run_in_flight_is_a_task_of_its_call_in_the_inflight_nursery_until_it_has_ended(system: System) -> None:
    run_id = start_run(system, "three.wanted", {"n": 1, "body_seconds": 1.0}, "seen-in-flight")
    wait_until("a body runs", lambda: body_starts(system, run_id, "a"))
    assert f"invocation {run_id}" in invocation_names(system)
    system.wait_all_ended()
    assert wait_until("its task is gone", lambda: f"invocation {run_id}" not in invocation_names(system))


def test_a_near_deadline_is_an_alarm_until_it_has_rung(system: System) -> None:
    near = start_run(system, "nap.wanted", {"n": 1}, "near-nap")
    wait_until(
        "an alarm of the run is set",
        lambda: any(name.startswith(f"alarm wait {near} nap:") for name in task_names(system, "alarms")),
        10,
    )
    system.wait_all_ended()
    assert not any(near in name for name in task_names(system, "alarms"))


def test_the_services_stand_where_they_stop(system: System) -> None:
    intake, support = task_names(system, "intake"), task_names(system, "support")
    for service in ("serve_dispatcher", "serve_timers", "serve_reaper", "serve_promotions", "serve_backfill", "serve_pruner"):
        assert any(name.endswith(service) for name in intake), service
    for service in (
        "serve_heartbeat",
        "serve_listener",
        "serve_notifier",
        "serve_signals",
        "writer of events",
        "writer of reports",
    ):
        assert any(name.endswith(service) for name in support), service
