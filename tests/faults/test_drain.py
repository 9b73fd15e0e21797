"""SIGTERM with invocations in flight: they end or go back uncounted, nothing new begins, and a second SIGTERM stops at once."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.system.checker import assert_sound
from tests.system.logged_client import Load
from tests.system.processes import wait_until
from tests.system.runs import body_starts, ended_as, invocations_of, start_run
from tests.system.system import System, http_status, open_system

pytestmark = [pytest.mark.postgres, pytest.mark.slow]

DRAIN_SECONDS = 2.0
# Beyond the drain: the HTTP server, the leases' last writes, and Postgres, which the engine owns.
STOP_SECONDS_MAX = 3.0


@pytest.fixture(scope="module")
def draining_system() -> Iterator[System]:
    with open_system(lease_seconds=3, drain_seconds=DRAIN_SECONDS) as opened:
        yield opened


@pytest.fixture
def system(draining_system: System) -> System:
    if not draining_system.engine().is_alive():
        draining_system.start_engine()
    return draining_system


def test_a_drained_engine_ends_what_is_in_flight_begins_nothing_and_counts_no_attempt(system: System) -> None:
    engine = system.engine()
    with Load(
        [system.client()], lambda n: ("three.wanted", {"n": n, "body_seconds": 0.4}), prefix="drain", per_second=40, threads=8
    ) as load:
        wait_until("many invocations are in flight", lambda: _in_flight(system) >= 20)
        engine.terminate()
        told_at = time.time()
        wait_until("it says that it is not ready", lambda: http_status(system.engine_ports[0], "/readyz") != 200, 2)
        # Leased later than this it was not by an engine that drains.
        later = system.query("SELECT max(leased_at) AS at FROM live_run WHERE state = 'leased'")[0]["at"]
        assert later is None or later.timestamp() < told_at + 0.5
        assert engine.wait(DRAIN_SECONDS + STOP_SECONDS_MAX) == 0
        took_seconds = time.time() - told_at
        system.start_engine()
        assert load.acknowledged
    evidence = assert_sound(system)
    outcomes = {lease["outcome"] for leases in evidence.leases.values() for lease in leases.values()}
    assert outcomes <= {"completed", "parked", "handed_back"}, f"draining must not interrupt or fail a run: {outcomes}"
    assert system.count("SELECT count(*) FROM invocation WHERE attempt > 1") == 0
    assert took_seconds < DRAIN_SECONDS, f"all bodies had ended long before, and stopping took {took_seconds:.1f} s"


def test_a_run_that_outlasts_the_drain_is_handed_back_and_counts_no_attempt(system: System) -> None:
    run_id = start_run(system, "chain.wanted", {"n": "long", "body_seconds": DRAIN_SECONDS + 1.5}, "longer-than-the-drain")
    wait_until("the body of a runs", lambda: body_starts(system, run_id, "a"))
    system.engine().terminate()
    assert system.engine().wait(DRAIN_SECONDS + STOP_SECONDS_MAX) == 0
    system.start_engine()
    assert_sound(system)
    first, *others = invocations_of(system, run_id)
    assert (first["outcome"], first["attempt"]) == ("handed_back", 1)
    assert [row["attempt"] for row in others] == [1] * len(others)


def test_a_second_sigterm_stops_now_and_the_run_goes_on_elsewhere(system: System) -> None:
    run_id = start_run(system, "three.wanted", {"n": "twice", "body_seconds": 1.5}, "told-twice")
    wait_until("the body of a runs", lambda: body_starts(system, run_id, "a"))
    engine = system.engine()
    engine.terminate()
    wait_until("it drains", lambda: http_status(system.engine_ports[0], "/readyz") != 200, 5)
    told_at = time.time()
    engine.terminate()
    engine.wait(STOP_SECONDS_MAX)
    assert time.time() - told_at < STOP_SECONDS_MAX
    system.start_engine()
    assert_sound(system)
    assert ended_as(system, run_id) == "completed"


def _in_flight(system: System) -> int:
    return system.count("SELECT count(*) FROM live_run WHERE state = 'leased'")
