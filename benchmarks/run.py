"""Runs the benchmarks and prints their numbers with the machine. `make bench`, `ONLY=name`, `JSON=path`."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import floor, three_steps

BENCHMARKS: dict[str, Callable[[], dict[str, Any]]] = {"floor": floor.measure, "three_steps": three_steps.measure}


def main() -> None:
    """Measure, print, and write the JSON where asked."""
    parser = argparse.ArgumentParser(description="Measure Durable with real processes.")
    parser.add_argument("--only", choices=sorted(BENCHMARKS), help="measure this one")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    asked = parser.parse_args()
    numbers: dict[str, Any] = {}
    for name, measure in BENCHMARKS.items():
        if asked.only in (None, name):
            numbers |= measure()
    if {"floor.runs_per_second", "three_steps.bulk_runs_per_second"} <= set(numbers):
        numbers["three_steps.fraction_of_floor"] = numbers["three_steps.bulk_runs_per_second"] / numbers["floor.runs_per_second"]
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.system(), "cpu": _cpu_model()}
    table = Table("measure", "value", title=f"{machine['cores']} cores, {machine['cpu']}, Python {machine['python']}")
    for name, value in numbers.items():
        table.add_row(name, f"{value:,.2f}")
    Console().print(table)
    if asked.json:
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        asked.json.write_text(json.dumps({"machine": machine, "numbers": numbers}, indent=2) + "\n")


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
