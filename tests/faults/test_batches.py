"""Faults that fall on a call with many invocations in it: its app dies, freezes or blocks, its engine dies, both engines die in turn."""

from __future__ import annotations

import random
import time
from collections.abc import Collection
from typing import Any

import pytest

from tests.system.call_log import ReceivedCall
from tests.system.checker import Evidence, assert_sound
from tests.system.logged_client import Load
from tests.system.processes import free_ports, wait_until
from tests.system.runs import body_starts, ended_as, start_many, start_run
from tests.system.supervisor import app_kept_up
from tests.system.system import System, http_status

pytestmark = [pytest.mark.postgres, pytest.mark.slow]

RUNS = 24
TOGETHER_MIN = 20
LEASE_SECONDS = 3
# The reaper leaves a lease alone for 2 s after its end.
LOST_SECONDS = LEASE_SECONDS + 2


@pytest.fixture
def system(two_engines: System) -> System:
    """Its app has a pace at which a whole batch goes to it at once, whatever the test before did to it, and room beside that for those
    whose end is being written.
    """
    turns_together = 0
    for turn in range(16):
        run_ids = _start_three(two_engines, f"warm-{time.monotonic_ns()}-{turn}", body_seconds=0)
        two_engines.wait_all_ended()
        if max(len(call.runs) for call in _calls_with(two_engines, run_ids)) >= TOGETHER_MIN:
            turns_together += 1
        if turns_together == 3:
            return two_engines
    raise AssertionError("The app is never given a whole batch again.")


def test_an_app_killed_in_a_batch_costs_no_committed_step_and_its_runs_travel_alone_once(system: System) -> None:
    wanted = [{"n": n, "body_seconds": 0.9} for n in range(RUNS // 2)]
    events = [("nap.wanted", each, f"killed-nap-{each['n']}") for each in wanted]
    events += [("three.wanted", {"n": n, "body_seconds": 0.4}, f"killed-three-{n}") for n in range(RUNS // 2)]
    run_ids = [started.run_id for answer in system.client().send_many_logged(events) for started in answer.runs]
    naps, threes = run_ids[: RUNS // 2], run_ids[RUNS // 2 :]
    wait_until("all are in the midst of it", lambda: _begun(system, naps, "a") and _begun(system, threes, "b"))
    system.app.kill9()
    died_at = time.time()
    system.start_app()
    assert_sound(system)
    starts = _starts(system, run_ids)
    assert [starts[run_id] for run_id in threes] == [{"a": 1, "b": 2, "c": 1}] * len(threes)
    assert [starts[run_id] for run_id in naps] == [{"a": 2, "b": 1, "c": 1}] * len(naps)
    calls = _calls_with(system, run_ids)
    assert max(len(call.runs) for call in calls if call.at < died_at) >= TOGETHER_MIN, "they travelled together when the app died"
    for run_id in run_ids:
        first = next(call for call in _calls_with(system, [run_id]) if call.at > died_at)
        assert len(first.runs) == 1, f"{run_id} was in the call that broke, and travelled with others next: {first}"
    again = [call for call in _calls_with(system, naps) if call.at > died_at and len(call.runs) > 1]
    assert again, "after their sleep some travel together again"


def test_what_a_frozen_app_held_is_taken_over_and_its_handlers_stop_when_it_wakes(system: System) -> None:
    assert system.to_app is not None
    run_ids = _start_three(system, "frozen-batch", body_seconds=0.6)
    wait_until("all bodies run", lambda: _begun(system, run_ids, "a"))
    frozen = system.app
    [port] = free_ports(1)
    other = system.start_app(name="app2", port=port)
    try:
        frozen.freeze()
        held = _leased(system, run_ids)
        assert max(len(set(call.runs) & set(held)) for call in _calls_with(system, run_ids)) >= TOGETHER_MIN
        system.to_app.target = port
        wait_until("the other app serves", lambda: http_status(port, "/") > 0)
        wait_until("the leases are lost", lambda: not set(held) & set(_leased(system, run_ids)))
        # A connection that waited for its next call leads to the frozen process still.
        system.to_app.drop_connections()
        wait_until("the other app has ended them all", lambda: _all_ended(system, run_ids))
        frozen.thaw()
        wait_until("the frozen bodies are over", lambda: not _open_bodies(system, frozen.pid))
        # What the woken process has to say goes before what it says of a later run.
        system.to_app.target = system.app_port
        system.to_app.drop_connections()
        later = start_run(system, "three.wanted", {"n": "later"}, "after-the-frozen-batch")
        wait_until("a later run has ended in the woken app", lambda: ended_as(system, later) == "completed")
        evidence = assert_sound(system)
    finally:
        frozen.thaw()
        other.kill9()
    for run_id, generation in held:
        of_frozen = [
            line for line in evidence.lines if (line.run_id, line.generation, line.pid) == (run_id, generation, frozen.pid)
        ]
        begun = [line.step_id for line in of_frozen if line.what == "start"]
        written = {step["step_id"]: step["generation"] for step in evidence.steps if step["run_id"] == run_id}
        # The last that it began was never taken; all before that was, when it still had its lease.
        assert [written[step_id] > generation for step_id in begun] == [False] * (len(begun) - 1) + [True], (begun, written)


def test_runs_of_a_killed_engine_end_through_another_and_through_its_successor(system: System) -> None:
    """Their app keeps the leases by its poll at the other engine, and says the ends to the engine that was started again."""
    system.balance_to(1)
    data = [{"n": f"orphan-{n}", "body_seconds": LOST_SECONDS + 1} for n in range(RUNS)]
    run_ids = start_many(system, "chain.wanted", data, "orphans", engine=0)
    wait_until("all bodies run", lambda: _begun(system, run_ids, "a"))
    assert max(len(call.runs) for call in _calls_with(system, run_ids)) >= TOGETHER_MIN
    system.engine(0).kill9()
    killed_at = time.time()
    system.start_engine(0)
    wait_until("the leases were renewed", lambda: _earliest_end(system, run_ids) > killed_at + LEASE_SECONDS)
    system.balance_to(0)
    evidence = assert_sound(system)
    assert [_outcomes(evidence, run_id) for run_id in run_ids] == [["completed"]] * RUNS, "no lease was lost"
    assert all(_starts(system, [run_id])[run_id] == {"a": 1} for run_id in run_ids)


def test_a_body_that_blocks_its_loop_for_longer_than_a_lease_keeps_all_leases_of_its_process(system: System) -> None:
    events: list[tuple[str, Any, str]] = [("block.wanted", {"n": "block", "block_seconds": LOST_SECONDS + 1}, "block")]
    events += [("three.wanted", {"n": n, "body_seconds": 0.3}, f"beside-block-{n}") for n in range(4)]
    run_ids = [started.run_id for answer in system.client().send_many_logged(events) for started in answer.runs]
    blocking = run_ids[0]
    wait_until("the loop is blocked", lambda: body_starts(system, blocking, "a"))
    # Its call lies unread until the loop goes on.
    run_ids.append(start_run(system, "three.wanted", {"n": "unread"}, "behind-block"))
    evidence = assert_sound(system)
    assert [_outcomes(evidence, run_id) for run_id in run_ids] == [["completed"]] * len(run_ids), (
        "no second invocation was started"
    )
    assert _starts(system, [blocking])[blocking] == {"a": 1, "b": 1}


def test_an_app_that_dies_between_a_result_and_its_acknowledgement_runs_no_acknowledged_body_again(
    system: System, seed: int
) -> None:
    chance = random.Random(seed)
    data = [
        {
            "n": f"{seed}-{n}",
            "body_seconds": round(chance.uniform(0, 0.03), 3),
            "exit_after": chance.choice("abc"),
            # At once nothing of it has left the process; later it may have been taken.
            "exit_seconds": 0 if n % 2 else round(chance.uniform(0, 0.02), 3),
        }
        for n in range(8)
    ]
    with app_kept_up(system) as deaths:
        run_ids = start_many(system, "exit.wanted", data, f"exit-{seed}")
        evidence = assert_sound(system)
    assert deaths and set(deaths) == {9}
    written = {(step["run_id"], step["step_id"]): step["generation"] for step in evidence.steps}
    lost = [line for line in evidence.lines if line.what == "line" and line.generation < written[line.run_id, line.step_id]]
    assert [line for line in lost if line.run_id in run_ids], "no handler had a result that was lost; the scenario shows nothing"


def test_two_engines_killed_in_turn_while_runs_are_handed_over_at_once(system: System, seed: int) -> None:
    chance = random.Random(seed)
    clients = [system.client(0), system.client(1)]

    def make_event(number: int) -> tuple[str, Any]:
        return "three.wanted", {"n": number, "body_seconds": round(chance.uniform(0, 0.2), 3)}

    run_ids: list[str] = []
    with Load(clients, make_event, prefix=f"turns-{seed}", per_second=40, threads=8) as load:
        for victim in (0, 1):
            system.balance_to(1 - victim)
            wanted = load.acknowledged + chance.randint(10, 30)
            wait_until("events come in", lambda wanted=wanted: load.acknowledged >= wanted)  # type: ignore[misc]
            run_ids += _start_three(system, f"turn-{seed}-{victim}", body_seconds=0.2, engine=victim)
            time.sleep(chance.uniform(0, 0.4))
            system.engine(victim).kill9()
            assert _handed_over_at_once(system, run_ids[-RUNS:]), "the kill fell on nothing that had been handed over at once"
            system.start_engine(victim)
    evidence = assert_sound(system, number=1)
    assert all(evidence.runs[run_id]["status"] == "completed" for run_id in run_ids)


def _start_three(system: System, prefix: str, *, body_seconds: float, engine: int = 0) -> list[str]:
    data = [{"n": f"{prefix}-{n}", "body_seconds": body_seconds} for n in range(RUNS)]
    return start_many(system, "three.wanted", data, prefix, engine=engine)


def _begun(system: System, run_ids: Collection[str], step_id: str) -> bool:
    """Whether the body of the step has begun in each run."""
    return set(run_ids) <= {line.run_id for line in system.witness() if line.what == "start" and line.step_id == step_id}


def _starts(system: System, run_ids: Collection[str]) -> dict[str, dict[str, int]]:
    """How often each body of each run started."""
    found: dict[str, dict[str, int]] = {run_id: {} for run_id in run_ids}
    for line in system.witness():
        if line.what == "start" and line.run_id in found:
            found[line.run_id][line.step_id] = found[line.run_id].get(line.step_id, 0) + 1
    return found


def _calls_with(system: System, run_ids: Collection[str]) -> list[ReceivedCall]:
    return [call for call in system.calls() if any(run_id in run_ids for run_id, _ in call.runs)]


def _leased(system: System, run_ids: Collection[str]) -> list[tuple[str, int]]:
    rows = system.query(
        "SELECT run_id::text, generation FROM live_run WHERE state = 'leased' AND run_id = ANY($1::text[]::uuid[])", list(run_ids)
    )
    return [(row["run_id"], row["generation"]) for row in rows]


def _handed_over_at_once(system: System, run_ids: Collection[str]) -> int:
    """How many of these runs have the lease still that was given out with them: it has an instant before theirs; a claim comes later."""
    return system.count(
        """SELECT count(*) FROM live_run JOIN run USING (run_id)
            WHERE state = 'leased' AND generation = 1 AND leased_at < run.created_at AND run_id = ANY($1::text[]::uuid[])""",
        list(run_ids),
    )


def _earliest_end(system: System, run_ids: Collection[str]) -> float:
    """The first instant at which a lease of these runs ends."""
    [row] = system.query("SELECT min(due_at) AS at FROM live_run WHERE run_id = ANY($1::text[]::uuid[])", list(run_ids))
    return float(row["at"].timestamp())


def _all_ended(system: System, run_ids: Collection[str]) -> bool:
    return system.count("SELECT count(*) FROM run_end WHERE run_id = ANY($1::text[]::uuid[])", list(run_ids)) == len(run_ids)


def _open_bodies(system: System, pid: int) -> set[tuple[str, str, int]]:
    """Bodies of a process that have begun and not ended."""
    lines = [line for line in system.witness() if line.pid == pid and line.what in ("start", "end")]
    ended = {(line.run_id, line.step_id, line.generation) for line in lines if line.what == "end"}
    return {(line.run_id, line.step_id, line.generation) for line in lines} - ended


def _outcomes(evidence: Evidence, run_id: str) -> list[str]:
    return [lease["outcome"] for _, lease in sorted(evidence.leases[run_id].items())]
