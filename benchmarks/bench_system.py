"""A whole system to measure: `durable dev` on a data directory of its own, and the app under hypercorn, as real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from examples.onboarding.demo import free_ports

COMMANDS = Path(sys.executable).parent
START_SECONDS_MAX = 60.0


@dataclass(frozen=True)
class BenchSystem:
    """The running system. CPU times are of all its processes so far, in seconds."""

    engine: psutil.Process
    app: psutil.Process
    engine_url: str

    def cpu_seconds(self) -> dict[str, float]:
        postgres = [child for child in self.engine.children(recursive=True) if child.name().startswith("postgres")]
        return {
            "engine": _cpu(self.engine),
            "app": sum(_cpu(process) for process in (self.app, *self.app.children(recursive=True))),
            "postgres": sum(_cpu(process) for process in postgres),
        }

    def is_drained(self) -> bool:
        """Whether no run is left that has not ended."""
        return not any(
            durable_json("run", "list", "--status", status, "--limit", "1")["runs"] for status in ("running", "queued", "waiting")
        )


@contextmanager
def open_system(*, runs_in_flight: int) -> Iterator[BenchSystem]:
    """Start everything, wait until the engine has found the app, and stop all at the end."""
    with tempfile.TemporaryDirectory(prefix="durable-bench-") as home:
        Path(home).chmod(0o755)
        engine_port, app_port = free_ports(2)
        os.environ.update(
            DURABLE_HOME=home, DURABLE_ENV="dev", DURABLE_URL=f"http://127.0.0.1:{engine_port}", DURABLE_DEPLOYMENT="bench"
        )
        with open(Path(home) / "log.txt", "ab") as log:  # noqa: PTH123 (a handle to pass on)
            app = subprocess.Popen(
                [COMMANDS / "hypercorn", "--log-level", "warning", "--bind", f"127.0.0.1:{app_port}", "benchmarks.app:asgi"],
                stdout=log, stderr=log,
            )  # fmt: skip
            engine = subprocess.Popen(
                [COMMANDS / "durable", "dev", "--port", str(engine_port), "--app-url", f"http://127.0.0.1:{app_port}/",
                 "--runs-in-flight", str(runs_in_flight)],
                stdout=log, stderr=log,
            )  # fmt: skip
            try:
                _wait_for_app(Path(home) / "log.txt", (app, engine))
                yield BenchSystem(psutil.Process(engine.pid), psutil.Process(app.pid), os.environ["DURABLE_URL"])
            finally:
                for process in (engine, app):
                    process.terminate()
                for process in (engine, app):
                    try:
                        process.wait(30)
                    except subprocess.TimeoutExpired:
                        process.kill()


def durable_json(*arguments: str) -> Any:
    done = subprocess.run([COMMANDS / "durable", *arguments, "-o", "json"], capture_output=True, check=True)
    return json.loads(done.stdout)


def _wait_for_app(log: Path, processes: tuple[subprocess.Popen[bytes], ...]) -> None:
    give_up_at = time.monotonic() + START_SECONDS_MAX
    while b"bench/dev with" not in log.read_bytes():
        if time.monotonic() > give_up_at or any(process.poll() is not None for process in processes):
            raise SystemExit(f"The system did not come up:\n{log.read_text()}")
        time.sleep(0.1)


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
