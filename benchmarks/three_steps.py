"""Three-step runs: how many a second in bulk at 64 in flight, and how long one takes at rest, from event to completed run."""

from __future__ import annotations

import statistics
import time
from typing import Any

import anyio

import durable
from benchmarks.app import app
from benchmarks.bench_system import BenchSystem, open_system

# An app gets half of the engine's places, and a claim a quarter: 64 to 95 invocations of this one app are open at once.
RUNS_IN_FLIGHT = 128
BULK_RUNS = 3_000
EVENTS_PER_POST = 100
SINGLE_RUNS = 60


def measure() -> dict[str, Any]:
    """Both numbers, from one system."""
    with open_system(runs_in_flight=RUNS_IN_FLIGHT) as system:
        anyio.run(_bulk, system, 300)
        return {**anyio.run(_one_at_a_time), **anyio.run(_bulk, system, BULK_RUNS)}


async def _bulk(system: BenchSystem, runs: int) -> dict[str, Any]:
    before, started = system.cpu_seconds(), time.perf_counter()
    last_ids: list[str] = []
    for first in range(0, runs, EVENTS_PER_POST):
        answers = await app.send_many([{"name": "three.wanted", "data": {"n": n}} for n in range(first, first + EVENTS_PER_POST)])
        last_ids = [answer.runs[0].run_id for answer in answers]
    sent_seconds = time.perf_counter() - started
    # The queue is first in, first out: the last event's run ends among the last.
    for run_id in last_ids[-3:]:
        await durable.RunHandle(app, run_id, "three").result(timeout=300)
    while not await anyio.to_thread.run_sync(system.is_drained):
        await anyio.sleep(0.01)
    seconds = time.perf_counter() - started
    after = system.cpu_seconds()
    return {
        "three_steps.bulk_runs_per_second": runs / seconds,
        "three_steps.bulk_steps_per_second": 3 * runs / seconds,
        "three_steps.events_per_second_while_sending": runs / sent_seconds,
        **{f"three_steps.cpu_ms_per_step.{name}": 1000 * (after[name] - before[name]) / (3 * runs) for name in after},
    }


async def _one_at_a_time() -> dict[str, Any]:
    milliseconds: list[float] = []
    for n in range(SINGLE_RUNS):
        started = time.perf_counter()
        [answer] = await app.send_many([{"name": "three.wanted", "data": {"n": n}}])
        await durable.RunHandle(app, answer.runs[0].run_id, "three").result(timeout=30)
        milliseconds.append(1000 * (time.perf_counter() - started))
    return {
        "three_steps.single_ms_median": statistics.median(milliseconds),
        "three_steps.single_ms_p95": statistics.quantiles(milliseconds, n=20)[-1],
    }
