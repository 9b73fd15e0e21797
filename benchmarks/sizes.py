"""How much each benchmark does. The small sizes show in two minutes that all of them work; their numbers say little."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """Amounts; seconds are of measuring, besides starting and warming up."""

    bulk_seconds: float = 8.0
    latency_runs: int = 100
    quiet_runs: int = 50
    ingest_seconds: float = 3.0
    long_run_steps: int = 10_000
    sleeping_runs: int = 10_000
    idle_seconds: float = 20.0
    replay_results: int = 500
    floor_runs: int = 6_400


FULL = Sizes()
SMALL = Sizes(
    bulk_seconds=1.0,
    latency_runs=20,
    quiet_runs=10,
    ingest_seconds=0.5,
    long_run_steps=1_000,
    sleeping_runs=500,
    idle_seconds=3.0,
    replay_results=50,
    floor_runs=640,
)
