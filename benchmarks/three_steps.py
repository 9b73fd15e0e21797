"""Three-step runs: how many a second in bulk, by how many are in flight, and how long one takes at rest.

In bulk, all events are sent as fast as the engine takes them, in hundreds; the clock runs from before the first message to the end of the
last run, by the database. `--runs-in-flight` is what the engine may have open; how many were is looked at in the database while it works.
"""

from __future__ import annotations

import math
import statistics
import time
from datetime import UTC, datetime, timedelta

from benchmarks.bench_failed import BenchFailed
from benchmarks.bench_system import BenchSystem, open_system
from benchmarks.database_eye import DatabaseEye
from benchmarks.lean_client import LeanConnection, events_body, new_events
from benchmarks.sizes import Sizes

# How many runs of the app may be in flight; 896 is what an engine with default settings gives one app.
IN_FLIGHT = (1, 64, 512, 896)
# The system with this many also shows how long one run takes.
LATENCY_IN_FLIGHT = 64
EVENTS_PER_POST = 100
RUNS_MIN, RUNS_MAX = 100, 30_000
STEPS = 3
# Longer than a run takes, so that each finds a system in which nothing happens.
QUIET_SECONDS = 0.1
DRAIN_SECONDS_MAX = 300.0

COUNT_COMPLETED = """
SELECT count(*) FILTER (WHERE status = 'completed') AS completed, count(*) AS ended, max(ended_at) AS last_ended_at
  FROM run_end WHERE ended_at >= $1"""


def measure(sizes: Sizes) -> dict[str, float]:
    """Bulk with each number in flight, each on a system of its own; latency at rest on one of them."""
    numbers: dict[str, float] = {}
    for at_once in IN_FLIGHT:
        with open_system(runs_in_flight=_places(at_once)) as system, system.open_eye() as eye:
            connection = system.connect()
            # The second round is the first with everything warm, and tells how many runs fill the time.
            _bulk(system, eye, connection, 60)
            warm = _bulk(system, eye, connection, 60 if at_once == 1 else 2_500)
            if at_once == LATENCY_IN_FLIGHT:
                numbers |= {f"three_steps.{name}": value for name, value in _at_rest(system, eye, connection, sizes).items()}
            runs = min(max(int(warm["runs_per_second"] * sizes.bulk_seconds), RUNS_MIN), RUNS_MAX)
            bulk = _bulk(system, eye, connection, runs)
            numbers |= {f"three_steps.in_flight_{at_once}.{name}": value for name, value in bulk.items()}
            connection.close()
    return numbers


def _places(at_once: int) -> int:
    """The places that an engine needs so that one app gets this many of them: it keeps an eighth for others."""
    return at_once if at_once == 1 else math.ceil(at_once * 8 / 7)


def _bulk(system: BenchSystem, eye: DatabaseEye, connection: LeanConnection, runs: int) -> dict[str, float]:
    bodies = [
        events_body(new_events("three.wanted", min(EVENTS_PER_POST, runs - first))) for first in range(0, runs, EVENTS_PER_POST)
    ]
    with eye.sampling_in_flight() as in_flight:
        before, started_at, started = system.cpu_seconds(), datetime.now(UTC), time.perf_counter()
        for body in bodies:
            connection.ask("/v1/events", body)
        sent_seconds = time.perf_counter() - started
        system.wait_until("all runs have ended", lambda: not eye.has_live_runs(), DRAIN_SECONDS_MAX)
        after = system.cpu_seconds()
    ended = eye.row(COUNT_COMPLETED, started_at)
    if (ended["completed"], ended["ended"]) != (runs, runs):
        raise BenchFailed(f"Of {runs} runs {ended['completed']} have completed and {ended['ended']} ended.")
    seconds = (ended["last_ended_at"] - started_at).total_seconds()
    return {
        "runs": runs,
        "runs_per_second": runs / seconds,
        "steps_per_second": STEPS * runs / seconds,
        "in_flight_mean": in_flight.mean,
        "in_flight_max": in_flight.most,
        "events_per_second_while_sending": runs / sent_seconds,
        **{f"cpu_ms_per_step.{name}": 1000 * (after[name] - before[name]) / (STEPS * runs) for name in after},
    }


def _at_rest(system: BenchSystem, eye: DatabaseEye, connection: LeanConnection, sizes: Sizes) -> dict[str, float]:
    """One run at a time: with a client that asks for the result, back to back; then with nobody who asks, and a pause after each."""
    asked, cpu_before = [], time.process_time()
    sent_at: dict[str, datetime] = {}
    for _ in range(sizes.latency_runs):
        [event], started_at, started = new_events("three.wanted", 1), datetime.now(UTC), time.perf_counter()
        run_id = connection.send_events([event])[0].runs[0].run_id
        connection.wait_completed(run_id, wait_seconds=20)
        asked.append(1000 * (time.perf_counter() - started))
        sent_at[run_id] = started_at
    client_cpu_ms = 1000 * (time.process_time() - cpu_before) / sizes.latency_runs
    quiet_sent_at: dict[str, datetime] = {}
    for _ in range(sizes.quiet_runs):
        started_at = datetime.now(UTC)
        quiet_sent_at[connection.send_events(new_events("three.wanted", 1))[0].runs[0].run_id] = started_at
        time.sleep(QUIET_SECONDS)
    system.wait_until("all runs have ended", lambda: not eye.has_live_runs())
    return {
        **_distribution("at_rest.client_ms", asked),
        **_distribution("at_rest.ended_ms", _until_ended(eye, sent_at)),
        **_distribution("at_rest.nobody_asks_ended_ms", _until_ended(eye, quiet_sent_at)),
        "at_rest.client_cpu_ms_per_run": client_cpu_ms,
    }


def _until_ended(eye: DatabaseEye, sent_at: dict[str, datetime]) -> list[float]:
    """Milliseconds from before each POST until the end of its run in the database. Both clocks are this machine's."""
    rows = eye.rows("SELECT run_id::text, ended_at FROM run_end WHERE run_id = ANY($1::text[]::uuid[])", list(sent_at))
    if len(rows) != len(sent_at):
        raise BenchFailed(f"Of {len(sent_at)} runs {len(rows)} have ended.")
    return [(row["ended_at"] - sent_at[row["run_id"]]) / timedelta(milliseconds=1) for row in rows]


def _distribution(name: str, milliseconds: list[float]) -> dict[str, float]:
    return {f"{name}.median": statistics.median(milliseconds), f"{name}.p95": statistics.quantiles(milliseconds, n=20)[-1]}
