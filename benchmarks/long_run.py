"""One run of very many steps, one after the other: whether a step costs the same at the end as at the beginning.

A TCP proxy stands between engine and app, in both directions, and notes each chunk with its time; the database knows when each step was
committed, and the processes' CPU time is noted twice a second. The proxy adds some 0.2 ms to each hop, at the beginning as at the end.
"""

from __future__ import annotations

import time
from bisect import bisect_right

from benchmarks.bench_failed import BenchFailed
from benchmarks.bench_system import BenchSystem, open_system
from benchmarks.lean_client import new_events
from benchmarks.sizes import Sizes

RUN_SECONDS_MAX = 300.0
LOOK_SECONDS = 0.5


def measure(sizes: Sizes) -> dict[str, float]:
    """Seconds and bytes for the first and the last tenth of the steps, and how they compare."""
    with open_system(is_counted=True) as system:
        return {f"long_run.{name}": value for name, value in _run(system, sizes.long_run_steps).items()}


def _run(system: BenchSystem, steps: int) -> dict[str, float]:
    connection, part = system.connect(), steps // 10
    with system.open_eye() as eye:
        started_at = eye.now()
        run_id = connection.send_events(new_events("long.wanted", 1, b'{"steps":%d}' % steps))[0].runs[0].run_id
        costs = CpuSamples(system)
        system.wait_until(
            "the long run has ended", lambda: costs.take() and not eye.has_live_runs(), RUN_SECONDS_MAX, LOOK_SECONDS
        )
        costs.take()
        end = eye.row("SELECT status, ended_at, error FROM run_end WHERE run_id = $1::text::uuid", run_id)
        if end["status"] != "completed":
            raise BenchFailed(f"The long run has {end['status']}: {end['error']}")
        rows = eye.rows("SELECT position, committed_at FROM step WHERE run_id = $1::text::uuid", run_id)
        invocations = eye.value("SELECT count(*) FROM invocation WHERE run_id = $1::text::uuid", run_id)
    connection.close()
    committed_at = {row["position"]: row["committed_at"].timestamp() for row in rows}
    counts = system.counts()
    spans = {"first": (committed_at[1], committed_at[part]), "last": (committed_at[steps - part + 1], committed_at[steps])}
    seconds = {name: until - since for name, (since, until) in spans.items()}
    sent_bytes = {name: counts.between(since, until) for name, (since, until) in spans.items()}
    cpu_ms = {
        name: {process: 1000 * costs.between(process, *span) / part for process in ("engine", "app", "postgres")}
        for name, span in spans.items()
    }
    whole_bytes = counts.between(started_at.timestamp(), end["ended_at"].timestamp())
    return {
        "steps": steps,
        "seconds": (end["ended_at"] - started_at).total_seconds(),
        "mib": whole_bytes / (1 << 20),
        "invocations": invocations,
        f"first_{part}_steps.seconds": seconds["first"],
        f"last_{part}_steps.seconds": seconds["last"],
        "seconds_ratio": seconds["last"] / seconds["first"],
        f"first_{part}_steps.kib": sent_bytes["first"] / 1024,
        f"last_{part}_steps.kib": sent_bytes["last"] / 1024,
        "bytes_ratio": sent_bytes["last"] / sent_bytes["first"],
        **{f"{name}_{part}_steps.cpu_ms_per_step.{process}": ms for name in spans for process, ms in cpu_ms[name].items()},
        "cpu_ratio": sum(cpu_ms["last"].values()) / sum(cpu_ms["first"].values()),
    }


class CpuSamples:
    """CPU time of the system's processes, noted now and then, to be asked for between two instants."""

    def __init__(self, system: BenchSystem) -> None:
        self._system = system
        self._times: list[float] = []
        self._seconds: list[dict[str, float]] = []
        self.take()

    def take(self) -> bool:
        """Note them; always true, to stand in a condition."""
        self._times.append(time.time())
        self._seconds.append(self._system.cpu_seconds())
        return True

    def between(self, process: str, since: float, until: float) -> float:
        """CPU seconds, taken to have been spent evenly between two samples."""
        return self._until(process, until) - self._until(process, since)

    def _until(self, process: str, instant: float) -> float:
        place = min(max(bisect_right(self._times, instant), 1), len(self._times) - 1)
        (since, until), (before, after) = self._times[place - 1 : place + 1], self._seconds[place - 1 : place + 1]
        part = min(max((instant - since) / (until - since), 0.0), 1.0)
        return before[process] + part * (after[process] - before[process])
