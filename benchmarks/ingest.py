"""Events into the database: one by one, from 16 connections, and in hundreds; such as trigger nothing, and such as start a run.

The runs are of an app that is synced but not served: the engine finds that out and holds its lane, so nothing but ingestion is measured.
"""

from __future__ import annotations

import statistics
import time

from benchmarks.bench_failed import BenchFailed
from benchmarks.bench_system import BenchSystem, open_system
from benchmarks.database_eye import DatabaseEye
from benchmarks.lean_client import ask_side_by_side, events_body, new_events
from benchmarks.sizes import Sizes
from examples.onboarding.demo import free_ports
from protocol.manifest import FunctionConfig, Manifest, Trigger, Workspace

ABSENT = Workspace("absent", "dev")
CONNECTIONS = 16
EVENTS_PER_POST = 100
KINDS = {"triggers_nothing": "nobody.listens", "starts_a_run": "absent.wanted"}


def measure(sizes: Sizes) -> dict[str, float]:
    """Events a second each way, with the CPU that an event costs."""
    numbers: dict[str, float] = {}
    with open_system() as system, system.open_eye() as eye:
        _hold_absent_app(system, eye)
        for kind, event_name in KINDS.items():
            ways = {
                "one_by_one": _one_by_one(system, event_name, sizes.ingest_seconds),
                "from_16_connections": _side_by_side(system, event_name, CONNECTIONS, 1, sizes.ingest_seconds),
                "in_hundreds": _side_by_side(system, event_name, 1, EVENTS_PER_POST, sizes.ingest_seconds),
            }
            for way, found in ways.items():
                numbers |= {f"ingest.{kind}.{way}.{name}": value for name, value in found.items()}
        _require_nothing_ran(eye)
    return numbers


def _hold_absent_app(system: BenchSystem, eye: DatabaseEye) -> None:
    """Sync an app at whose address nobody is, let the engine find that out, and keep it from trying again while it is measured."""
    [port] = free_ports(1)
    connection = system.connect(ABSENT)
    connection.sync(f"http://127.0.0.1:{port}/", Manifest(ABSENT, [1], [FunctionConfig("absent", [Trigger("absent.wanted")])]))
    connection.send_events(new_events("absent.wanted", 1))
    system.wait_until("the engine holds the lane of the absent app", lambda: bool(eye.rows("SELECT FROM lane_hold")))
    eye.change("UPDATE lane_hold SET held_until = clock_timestamp() + interval '1 hour'")
    connection.close()


def _one_by_one(system: BenchSystem, event_name: str, seconds: float) -> dict[str, float]:
    """One connection; each event waits for the answer of the one before."""
    connection, milliseconds = system.connect(ABSENT), []
    before, started = system.cpu_seconds(), time.perf_counter()
    while (sent := time.perf_counter()) < started + seconds:
        connection.ask("/v1/events", events_body(new_events(event_name, 1), ABSENT))
        milliseconds.append(1000 * (time.perf_counter() - sent))
    passed_seconds = time.perf_counter() - started
    connection.close()
    return {
        **_rates(system, before, len(milliseconds), passed_seconds),
        "ms.median": statistics.median(milliseconds),
        "ms.p95": statistics.quantiles(milliseconds, n=20)[-1],
    }


def _side_by_side(system: BenchSystem, event_name: str, count: int, events_per_post: int, seconds: float) -> dict[str, float]:
    connections = [system.connect(ABSENT) for _ in range(count)]
    before, started = system.cpu_seconds(), time.perf_counter()
    posts = ask_side_by_side(
        connections, "/v1/events", lambda: events_body(new_events(event_name, events_per_post), ABSENT), started + seconds
    )
    passed_seconds = time.perf_counter() - started
    for connection in connections:
        connection.close()
    return _rates(system, before, posts * events_per_post, passed_seconds)


def _rates(system: BenchSystem, before: dict[str, float], events: int, seconds: float) -> dict[str, float]:
    after = system.cpu_seconds()
    costs = {
        f"cpu_ms_per_event.{part}": 1000 * (after[part] - before[part]) / events for part in ("engine", "postgres", "client")
    }
    return {"events_per_second": events / seconds, **costs}


def _require_nothing_ran(eye: DatabaseEye) -> None:
    ran = eye.value(
        "SELECT count(*) FROM run JOIN function USING (function_id) JOIN run_end USING (run_id) WHERE function.name = 'absent'"
    )
    if ran:
        raise BenchFailed(f"{ran} runs of the app that is not served have ended, so more than ingestion was measured.")
