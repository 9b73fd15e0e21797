"""What every way of serving must do alike: hypercorn on asyncio, hypercorn on Trio, and a threaded WSGI server."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.scenarios.asking import (
    SCENARIO_APP,
    Gate,
    begin,
    ended,
    get,
    log_lines,
    most_at_once,
    output,
    send,
    spans,
    starts,
    step_of,
    waits_at,
)
from tests.system.processes import wait_until
from tests.system.system import START_SECONDS_MAX, System, open_system


@pytest.fixture(scope="module", params=["asyncio", "trio", "wsgi"])
def system(request: pytest.FixtureRequest) -> Iterator[System]:
    if request.param == "asyncio":
        opened = request.getfixturevalue("_one_system")
        yield opened
        assert opened.durable("audit")["findings"] == []
    elif request.param == "trio":
        with open_system(app=SCENARIO_APP, app_worker="trio", lease_seconds=3) as opened:
            yield opened
            assert opened.durable("audit")["findings"] == []
    else:
        with open_system(app=None, lease_seconds=3) as opened:
            command = [sys.executable, "-m", "tests.scenarios.serve_wsgi", str(opened.app_port)]
            opened.processes.start("app", command, opened.environment())
            wait_until("the engine knows the app", opened.knows_app, START_SECONDS_MAX)
            yield opened
            assert opened.durable("audit")["findings"] == []


def test_an_approved_user_gets_the_mail_and_no_body_or_log_line_comes_twice(system: System) -> None:
    user = f"approved-{system.app_port}"
    run_id = begin(system, "user.created", {"id": user, "cooldown": "300ms", "approval_timeout": "1m"})
    run = waits_at(system, run_id, "approve")
    assert [(step["id"], step["kind"], step["status"]) for step in run["steps"]] == [
        ("load-user", "step", "completed"),
        ("cooldown", "sleep", "completed"),
        ("approve", "wait_for_event", "waiting"),
    ]
    assert send(system, "approval.received", {"userId": "somebody else", "by": "Eve"}) == []
    send(system, "approval.received", {"userId": user, "by": "Grace"})
    assert output(system, run_id) == {"approved": True, "by": "Grace"}
    assert [len(starts(system, run_id, step)) for step in ("load-user", "send-email")] == [1, 1]
    # Three invocations: each replays what is before, and says nothing of it again.
    assert len(ended(system, run_id)["invocations"]) >= 3
    said = [log_lines(system, f"durable.onboarding {words} {user}") for words in ("loaded", "cooled down", "approved")]
    assert said == [1, 1, 1]


def test_without_approval_the_wait_ends_with_null_at_its_timeout_and_not_before(system: System) -> None:
    run_id = begin(system, "user.created", {"id": f"silent-{system.app_port}", "cooldown": "0s", "approval_timeout": "1200ms"})
    assert output(system, run_id) == {"approved": False, "by": None}
    approve = step_of(ended(system, run_id), "approve")
    assert approve["data"] is None and approve["status"] == "completed"
    [waited] = system.query(
        "SELECT extract(epoch FROM committed_at - planned_at)::float8 AS seconds FROM step"
        " WHERE run_id = $1::text::uuid AND step_id = 'approve'",
        run_id,
    )
    assert waited["seconds"] >= 1.2


def test_a_failing_step_is_tried_again_and_then_caught_and_compensated(system: System) -> None:
    run_id = begin(system, "charge.wanted", {"failures": 99})
    assert output(system, run_id) == {
        "compensated": "released",
        "name": "CardDeclined",
        "message": "no money, attempt 3",
        "code": "card_declined",
        "step": "charge",
    }
    charge = step_of(ended(system, run_id), "charge")
    assert charge["status"] == "failed" and charge["attempt"] == 3
    assert [(tried["attempt"], tried["error"]["message"]) for tried in charge["failed_attempts"]] == [
        (n, f"no money, attempt {n}") for n in (1, 2, 3)
    ]
    assert [line.attempt for line in starts(system, run_id, "charge")] == [1, 2, 3]
    assert len(starts(system, run_id, "release")) == 1


def test_plain_code_in_a_thread_has_every_kind_of_step(system: System) -> None:
    n = system.app_port
    run_id = begin(system, "plain.wanted", {"n": n})
    waits_at(system, run_id, "answer")
    send(system, "plain.answered", {"n": n, "text": "42"})
    assert output(system, run_id) == {"n": n, "caught": "expired", "answer": "42", "sent": 1}
    assert len(starts(system, run_id, "first")) == len(starts(system, run_id, "fails")) == 1
    assert [log_lines(system, f"durable.plain {words} {n}") for words in ("began", "answered")] == [1, 1]
    children = [
        run for run in get(system, "runs?function=child&limit=200")["runs"] if ended(system, run["run_id"])["output"] == n
    ]
    assert len(children) == 1, "the event that it sent starts exactly one run"


def test_bodies_of_one_run_run_side_by_side(system: System) -> None:
    run_id = begin(system, "many.wanted", {"count": 20})
    assert output(system, run_id) == sum(range(20))
    assert len(starts(system, run_id)) == 20


def test_a_step_body_outlives_its_lease_as_long_as_its_app_is_alive(system: System) -> None:
    # The lease is renewed while the body is held for longer than it lasts.
    gate = Gate(system)
    run_id = begin(system, "question.asked", {"n": system.app_port, "gate": str(gate)})
    [begun] = wait_until("the body runs", lambda: starts(system, run_id, "ask"))
    wait_until(
        "the lease was renewed beyond its first end",
        lambda: system.query(
            "SELECT 1 FROM live_run WHERE run_id = $1::text::uuid AND due_at > leased_at + make_interval(secs => $2::float8)",
            run_id,
            system.lease_seconds + 1,
        ),
    )
    send(system, "question.answered", {"n": system.app_port, "text": "early"})
    gate.open()
    # The answer came before the wait was registered, and is taken; the second wait does not take it again.
    assert output(system, run_id) == ["early", None]
    assert [line.generation for line in starts(system, run_id, "ask")] == [begun.generation]
    assert spans(system, [run_id], "ask")


@pytest.mark.parametrize("system", ["trio"], indirect=True)
def test_a_nursery_runs_its_steps_at_once_and_gives_up_what_it_cancels(system: System) -> None:
    run_id = begin(system, "nursery.wanted", {})
    assert output(system, run_id) == ["a", "b", "c", "last"]
    bodies = [span for step in "abc" for span in spans(system, [run_id], step)]
    assert len(bodies) == 3 and most_at_once(bodies) == 3
    assert len(starts(system, run_id)) == 5
    statuses = {step["id"]: step["status"] for step in ended(system, run_id)["steps"]}
    assert statuses["never"] == "abandoned" and statuses["wins"] == "completed"
