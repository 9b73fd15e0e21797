"""What runs that sleep cost an engine: CPU and memory with many of them, against an engine with none.

The engine is started anew before it is looked at with its sleeping runs, so that what it took while it brought them there is not in the
numbers; the memory before that is stated too.
"""

from __future__ import annotations

import time

from benchmarks.bench_system import BenchSystem, open_system
from benchmarks.lean_client import events_body, new_events
from benchmarks.sizes import Sizes

EVENTS_PER_POST = 100
# The engine asks a found app again every 3 s, and does the last of its start within this time.
SETTLE_SECONDS = 4.0
PARK_SECONDS_MAX = 300.0


def measure(sizes: Sizes) -> dict[str, float]:
    """CPU in percent of one core, and resident memory."""
    with open_system() as system:
        empty = _idle(system, sizes.idle_seconds)
        started = time.perf_counter()
        _park(system, sizes.sleeping_runs)
        park_seconds = time.perf_counter() - started
        mib_after_parking = system.engine_mib()
        system.stop("engine")
        system.start_engine()
        sleeping = _idle(system, sizes.idle_seconds)
    return {
        "sleeping.runs": sizes.sleeping_runs,
        "sleeping.parked_per_second": sizes.sleeping_runs / park_seconds,
        **{f"sleeping.none.{name}": value for name, value in empty.items()},
        **{f"sleeping.all.{name}": value for name, value in sleeping.items()},
        "sleeping.all.engine_mib_before_restart": mib_after_parking,
    }


def _idle(system: BenchSystem, seconds: float) -> dict[str, float]:
    time.sleep(SETTLE_SECONDS)
    before, started = system.cpu_seconds(), time.perf_counter()
    time.sleep(seconds)
    after, passed_seconds = system.cpu_seconds(), time.perf_counter() - started
    percent = {f"{part}_cpu_percent": 100 * (after[part] - before[part]) / passed_seconds for part in ("engine", "postgres")}
    return {**percent, "engine_mib": system.engine_mib()}


def _park(system: BenchSystem, runs: int) -> None:
    connection = system.connect()
    for first in range(0, runs, EVENTS_PER_POST):
        connection.ask("/v1/events", events_body(new_events("nap.wanted", min(EVENTS_PER_POST, runs - first))))
    connection.close()
    with system.open_eye() as eye:
        system.wait_until(
            f"{runs} runs sleep",
            lambda: eye.value("SELECT count(*) FROM live_run WHERE state = 'waiting'") == runs,
            PARK_SECONDS_MAX,
            look_seconds=0.2,
        )
