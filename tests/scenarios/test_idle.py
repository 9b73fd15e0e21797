"""An engine with a thousand sleeping runs has nothing to do, and does nearly nothing: measured from /proc, with its Postgres.

CPU seconds of the processes themselves are counted, not their share of a machine that others use too.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.scenarios.asking import SCENARIO_APP
from tests.system.processes import wait_until
from tests.system.system import System, open_system

RUNS = 1_000
MEASURED_SECONDS = 10.0
# 1 % of a core would be 0.1 s. A busy machine makes the same work dearer (cold caches), hence twice that.
CPU_SECONDS_MAX = 0.2


@pytest.mark.slow
def test_a_thousand_sleeping_runs_cost_no_time() -> None:
    with open_system(app=SCENARIO_APP) as system:
        client = system.client()
        for part in range(RUNS // 100):
            client.send_many_sync([{"name": "days.wanted", "data": {"n": part * 100 + n}} for n in range(100)])
        wait_until("all runs sleep", lambda: _sleeping(system) == RUNS, 60)
        # The app has no more part in it, and what its watch costs is not what sleeping runs cost; but it stays, as in life.
        pids = _tree(system.engine().pid) | _tree(system.postmaster_pid())
        wait_until("what was written has been cleaned up", lambda: _is_quiet(pids), 60)
        engine_before = _cpu_seconds({system.engine().pid})
        used_before, began_at = _cpu_seconds(pids), time.monotonic()
        time.sleep(MEASURED_SECONDS)
        pids |= _tree(system.engine().pid) | _tree(system.postmaster_pid())
        used, took = _cpu_seconds(pids) - used_before, time.monotonic() - began_at
        per_ten_seconds = used / took * MEASURED_SECONDS
        engine_only = _cpu_seconds({system.engine().pid}) - engine_before
        print(
            f"idle: {per_ten_seconds:.3f} CPU seconds in 10 s with {RUNS} sleeping runs, {engine_only:.3f} of them the engine's own"
        )
        assert _sleeping(system) == RUNS
        assert per_ten_seconds <= CPU_SECONDS_MAX, f"{per_ten_seconds:.3f} CPU seconds in 10 s; {CPU_SECONDS_MAX} are allowed"


def _sleeping(system: System) -> int:
    return system.count("SELECT count(*) FROM live_run JOIN wait USING (run_id) WHERE state = 'waiting' AND kind = 'sleep'")


def _is_quiet(pids: set[int]) -> bool:
    """Whether a second passes without much work: autovacuum and the end of the runs' invocations are over."""
    before = _cpu_seconds(pids)
    time.sleep(1)
    return _cpu_seconds(pids) - before <= 0.05


def _tree(pid: int) -> set[int]:
    """A process and all below it."""
    found = {pid}
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int(_stat(int(entry.name))[1])
            except OSError:
                continue
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def _cpu_seconds(pids: set[int]) -> float:
    """User and system time of these processes, and of their children that have ended."""
    ticks = 0
    for pid in pids:
        try:
            # utime, stime, cutime, cstime
            ticks += sum(int(field) for field in _stat(pid)[11:15])
        except OSError:
            continue  # ended: its time is among its parent's children's
    return ticks / os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> list[str]:
    """The fields of /proc/<pid>/stat behind the name, which may hold blanks: state, parent, …"""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
