"""Runs the benchmarks and prints their numbers with the machine. `make bench`, `ONLY=name`, `JSON=path`, `SMALL=1`."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks import floor, ingest, long_run, replay, sleeping, three_steps
from benchmarks.bench_failed import BenchFailed
from benchmarks.sizes import FULL, SMALL, Sizes

BENCHMARKS: dict[str, Callable[[Sizes], dict[str, float]]] = {
    "floor": floor.measure,
    "three_steps": three_steps.measure,
    "ingest": ingest.measure,
    "long_run": long_run.measure,
    "sleeping": sleeping.measure,
    "replay": replay.measure,
}


def main() -> int:
    """Measure, print, and write the JSON where asked; the process's exit code."""
    parser = argparse.ArgumentParser(description="Measure Durable with real processes.")
    parser.add_argument("--only", choices=sorted(BENCHMARKS), help="measure this one")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--small", action="store_true", help="do little of each, to see that it works")
    asked = parser.parse_args()
    # As Ctrl-C does: every block is left, and nothing stays behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    names = [name for name in BENCHMARKS if asked.only in (None, name)]
    numbers, failures = measure(names, SMALL if asked.small else FULL)
    machine = describe_machine()
    table = Table("measure", "value", title=", ".join(f"{value}" for value in machine.values()))
    for name, value in numbers.items():
        table.add_row(name, shown(value))
    if numbers:
        Console(width=110).print(table)
    if asked.json:
        written = {"measured_at": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine, "small": asked.small}
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        asked.json.write_text(json.dumps(written | {"numbers": numbers, "failures": failures}, indent=2) + "\n")
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


def measure(names: list[str], sizes: Sizes) -> tuple[dict[str, float], list[str]]:
    """Each benchmark in turn; all numbers, and the sentence of the one that could not go on, after which nothing is measured."""
    numbers: dict[str, float] = {}
    for name in names:
        started = time.monotonic()
        print(f"{name} …", file=sys.stderr, flush=True)
        try:
            numbers |= BENCHMARKS[name](sizes)
        except BenchFailed as failed:
            return numbers, [f"{name}: {failed}"]
        except psutil.NoSuchProcess as gone:
            return numbers, [f"{name}: a process of the system ended while it was measured ({gone})."]
        print(f"{name} took {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    bare = numbers.get("floor.runs_per_second")
    rates = [value for name, value in numbers.items() if name.startswith("three_steps.") and name.endswith(".runs_per_second")]
    if bare and rates:
        numbers["three_steps.fraction_of_floor"] = max(rates) / bare
    return numbers, []


def describe_machine() -> dict[str, str]:
    """What the numbers depend on."""
    return {
        "cores": f"{os.cpu_count()} cores",
        "cpu": _cpu_model(),
        "memory": f"{psutil.virtual_memory().total / (1 << 30):.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "python": f"Python {platform.python_version()}",
    }


def shown(value: float) -> str:
    """Digits that carry something."""
    return (
        f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:,.3g}" if abs(value) < 1 else f"{value:,.1f}"
    )


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    sys.exit(main())
