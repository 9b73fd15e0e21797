"""The checker finds each kind of broken promise: evidence that is sound but for one thing, which it must name, and nothing else."""

from __future__ import annotations

import copy
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from durable.wire import Workspace
from tests.system.checker import Evidence, check
from tests.system.processes import Processes
from tests.system.system import System
from tests.system.witness_log import Line

RUN = "01990000-0000-7000-8000-000000000001"
PID = 4711


def test_sound_evidence_is_sound() -> None:
    assert check(sound()) == []


def lose_event(evidence: Evidence) -> None:
    evidence.events.clear()


def lose_run(evidence: Evidence) -> None:
    evidence.acknowledged[0]["runs"] = [RUN[:-1] + "9"]


def start_after_commit(evidence: Evidence) -> None:
    evidence.lines.append(line("start", "a", 30, generation=2))


def start_in_a_later_lease(evidence: Evidence) -> None:
    """Too soon for the clocks to tell, and yet the lease was given out with the result."""
    evidence.steps[0]["committed_at"] = at(11.58)
    evidence.lines.append(line("start", "a", 11.6, generation=2))


def start_twice(evidence: Evidence) -> None:
    evidence.lines.insert(1, line("start", "a", 9.5))


def start_before_the_acknowledgement(evidence: Evidence) -> None:
    """The handler had the result of x, went on to a, and x was committed only then."""
    evidence.lines.insert(0, line("line", "x", 8.9))
    evidence.steps.insert(0, step("x", "step", 1, 9.01, generation=1))
    evidence.lines[:0] = [line("start", "x", 8.7), line("end", "x", 8.8)]


def go_on_after_stale(evidence: Evidence) -> None:
    """The result of c was never taken from generation 1, whose handler went on twice."""
    evidence.lines[2:2] = [line("start", "c", 10.2), line("end", "c", 10.3), line("line", "c", 10.4), line("line", "d", 10.5)]


def start_no_run(evidence: Evidence) -> None:
    evidence.events.append({"event_id": "y", "external_id": "e2", "name": "limited.wanted", "data": "{}"})


def leave_running(evidence: Evidence) -> None:
    evidence.runs[RUN]["status"] = None
    evidence.leases[RUN][2]["outcome"] = "leased"


def end_twice(evidence: Evidence) -> None:
    evidence.leases[RUN][1]["outcome"] = "completed"


def lease_after_the_end(evidence: Evidence) -> None:
    evidence.leases[RUN][3] = {
        "run_id": RUN,
        "generation": 3,
        "leased_at": at(40),
        "ended_at": None,
        "outcome": "leased",
        "detail": None,
    }


def write_late(evidence: Evidence) -> None:
    evidence.steps[0]["committed_at"] = at(11.5)


def exceed_limit_by_bodies(evidence: Evidence) -> None:
    evidence.lines.extend(line("start", f"x{n}", 50 + n, key="a") for n in range(3))


def exceed_limit_by_leases(evidence: Evidence) -> None:
    for n in range(2, 5):
        run_id = f"{RUN[:-1]}{n}"
        evidence.runs[run_id] = {**evidence.runs[RUN], "run_id": run_id, "external_id": f"e{n}"}
        evidence.leases[run_id] = copy.deepcopy(evidence.leases[RUN])


def answer_differently(evidence: Evidence) -> None:
    evidence.acknowledged.append({**evidence.acknowledged[0], "runs": []})


def store_event_twice(evidence: Evidence) -> None:
    evidence.events.append(dict(evidence.events[0]))


def wake_early(evidence: Evidence) -> None:
    evidence.lines[2] = line("start", "b", 10.7, generation=2)


def change_output(evidence: Evidence) -> None:
    evidence.runs[RUN]["output"] = '{"tenant":"b"}'


def change_event(evidence: Evidence) -> None:
    evidence.acknowledged[0]["data"] = {"tenant": "other"}


def commit_what_no_body_returned(evidence: Evidence) -> None:
    evidence.steps[2]["generation"] = 1
    evidence.steps[2]["committed_at"] = at(10.9)


@pytest.mark.parametrize(
    ("break_it", "number"),
    [
        (lose_event, "1"), (lose_run, "1"), (start_no_run, "1"), (start_after_commit, "2"), (start_in_a_later_lease, "2"),
        (start_twice, "2"), (start_before_the_acknowledgement, "2"), (go_on_after_stale, "2"),
        (leave_running, "3"), (end_twice, "4"), (lease_after_the_end, "4"),
        (write_late, "5"), (exceed_limit_by_bodies, "6"), (exceed_limit_by_leases, "6"), (answer_differently, "8"), (store_event_twice, "8"),
        (wake_early, "9"), (change_output, "10"), (change_event, "10"), (commit_what_no_body_returned, "2"),
    ],
)  # fmt: skip
def test_a_broken_promise_is_found(break_it: Callable[[Evidence], None], number: str) -> None:
    evidence = sound()
    break_it(evidence)
    assert [sentence for sentence in check(evidence) if sentence.startswith(f"{number}:")], check(evidence)


def test_a_late_start_in_a_process_that_was_frozen_is_counted_instead() -> None:
    evidence = sound()
    evidence.system.processes.frozen[PID] = [(10.0, 20.0)]
    evidence.lines.append(line("start", "b", 30, generation=1))
    assert check(evidence) == [] and evidence.frozen_starts == 1


def test_a_handler_that_had_a_result_which_was_never_taken_and_went_no_further_is_sound() -> None:
    evidence = sound()
    evidence.lines[2:2] = [line("start", "c", 10.2), line("end", "c", 10.3), line("line", "c", 10.4)]
    assert check(evidence) == []


def sound() -> Evidence:
    """One run of `limited`: a in generation 1, a sleep of a second, b and the end in generation 2."""
    data = '{"tenant":"a"}'
    return Evidence(
        System(Path("/nowhere"), Processes(Path("/nowhere")), "dev", [1], 2, 3.0, 5.0, Workspace("shop", "dev")),
        [line("start", "a", 9), line("end", "a", 10), line("start", "b", 11.6, generation=2), line("end", "b", 12, generation=2)],
        [{"id": "e1", "name": "limited.wanted", "data": {"tenant": "a"}, "runs": [RUN], "is_duplicate": False, "at": 8.0}],
        {
            RUN: {
                "run_id": RUN, "function": "limited", "external_id": "e1", "event": "limited.wanted", "data": data, "status": "completed",
                "output": data, "end_generation": 2, "ended_at": at(12.2),
            }
        },
        [
            step("a", "step", 1, 10.1, generation=1),
            {**step("nap:1", "sleep", 2, 11.3, generation=1), "planned_at": at(10.2)},
            step("b", "step", 3, 12.1, generation=2),
        ],
        {
            RUN: {
                1: {"run_id": RUN, "generation": 1, "leased_at": at(8.5), "ended_at": at(10.3), "outcome": "parked", "detail": None},
                2: {"run_id": RUN, "generation": 2, "leased_at": at(11.4), "ended_at": at(12.2), "outcome": "completed", "detail": None},
            }
        },
        [],
        [{"event_id": "x", "external_id": "e1", "name": "limited.wanted", "data": data}],
    )  # fmt: skip


def at(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def line(what: str, step_id: str, seconds: float, *, generation: int = 1, key: str = "") -> Line:
    return Line(what, RUN, step_id, 1, generation, seconds, PID, "limited", key, True)


def step(step_id: str, kind: str, position: int, seconds: float, *, generation: int) -> dict[str, Any]:
    return {
        "run_id": RUN, "step_id": step_id, "kind": kind, "position": position, "data": "{}", "error": None, "is_abandoned": False,
        "generation": generation, "attempt": 1, "planned_at": None, "started_at": None, "committed_at": at(seconds),
    }  # fmt: skip
