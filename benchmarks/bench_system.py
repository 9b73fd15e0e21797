"""A whole system to measure: `durable dev` on a data directory of its own, and the app under hypercorn, as real processes.

Owns the processes and their files: when the block is left, for whatever reason, none of them is there any more.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import psutil

from benchmarks.bench_failed import BenchFailed
from benchmarks.counting_proxy import Counts, read_counts
from benchmarks.database_eye import DatabaseEye, open_database_eye
from benchmarks.lean_client import WORKSPACE, LeanConnection, read_key
from engine.store.postgres_cluster import DATABASE, ROLE
from engine.store.postgres_home import choose_home
from engine.store.postgres_settings import PORT
from engine.store.socket_dir import socket_dir_for
from examples.onboarding.demo import free_ports
from protocol.manifest import Workspace

COMMANDS = Path(sys.executable).parent
START_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 40.0
LOOK_SECONDS = 0.05


@dataclass
class BenchSystem:
    """The running system. Each part can be stopped and started again on the same data and at the same address."""

    home: Path
    runs_in_flight: int
    is_counted: bool
    engine_port: int
    app_port: int
    proxied_engine_port: int
    proxied_app_port: int
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    # The postmaster first.
    _postgres: list[psutil.Process] = field(default_factory=list)

    # Parts ------------------------------------------------------------------------------------------------------------

    def start_proxy(self) -> None:
        """Put the counting proxy between engine and app, in both directions."""
        ports = [f"{self.proxied_engine_port}:{self.engine_port}", f"{self.proxied_app_port}:{self.app_port}"]
        self._start("proxy", [sys.executable, "-m", "benchmarks.counting_proxy", self.home / "counts", *ports])
        self.wait_until("the proxy listens", lambda: _listens(self.proxied_app_port) and _listens(self.proxied_engine_port))

    def start_app(self) -> None:
        self._start(
            "app",
            [COMMANDS / "hypercorn", "--log-level", "warning", "--bind", f"127.0.0.1:{self.app_port}", "benchmarks.app:asgi"],
        )
        self.wait_until("the app listens", lambda: _listens(self.app_port))

    def start_engine(self) -> None:
        """Start it and wait until it has found the app."""
        heard = len(self._log())
        app_port = self.proxied_app_port if self.is_counted else self.app_port
        self._start(
            "engine",
            [COMMANDS / "durable", "dev", "--port", str(self.engine_port), "--app-url", f"http://127.0.0.1:{app_port}/",
             "--runs-in-flight", str(self.runs_in_flight), "--drain-seconds", "5"],
        )  # fmt: skip
        self.wait_until("the engine has found the app", lambda: b"bench/dev with" in self._log()[heard:])
        [postmaster] = [child for child in self.engine.children() if child.name().startswith("postgres")]
        self._postgres = [postmaster, *postmaster.children()]

    def stop(self, name: str) -> None:
        """End a part, and what it left behind if it had to be killed."""
        process = self.processes.pop(name, None)
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if name == "engine":
            self._stop_postgres()

    def _stop_postgres(self) -> None:
        # The engine stops its Postgres; one that crashed or was killed could not.
        for process in self._postgres:
            try:
                process.send_signal(signal.SIGINT)
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(self._postgres, 20)

    def _start(self, name: str, command: list[str | Path]) -> None:
        environment = {
            **os.environ,
            "DURABLE_HOME": str(self.home),
            "DURABLE_ENV": "dev",
            "DURABLE_URL": f"http://127.0.0.1:{self.proxied_engine_port if self.is_counted else self.engine_port}",
            "DURABLE_DEPLOYMENT": "bench",
        }
        environment.pop("DURABLE_SIGNING_KEY", None)
        environment.pop("DATABASE_URL", None)
        with (self.home / "log.txt").open("ab") as log:
            self.processes[name] = subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def _log(self) -> bytes:
        return (self.home / "log.txt").read_bytes()

    # Looking at it ----------------------------------------------------------------------------------------------------

    @property
    def engine(self) -> psutil.Process:
        return psutil.Process(self.processes["engine"].pid)

    def cpu_seconds(self) -> dict[str, float]:
        """CPU time so far of each part with all its processes, and of the client, which is this process."""
        app = psutil.Process(self.processes["app"].pid)
        # Postgres' processes for maintenance come and go; the time of those that have ended is with the postmaster.
        postmaster = self._postgres[0]
        ended = postmaster.cpu_times()
        return {
            "engine": _cpu(self.engine),
            "app": sum(_cpu(process) for process in (app, *app.children(recursive=True))),
            "postgres": ended.children_user + ended.children_system + sum(map(_cpu, [postmaster, *postmaster.children()])),
            "client": time.process_time(),
        }

    def engine_mib(self) -> float:
        """Resident memory of the engine, without Postgres."""
        return float(self.engine.memory_info().rss) / (1 << 20)

    def counts(self) -> Counts:
        """The bytes between engine and app so far."""
        return read_counts(self.home / "counts")

    def connect(self, workspace: Workspace = WORKSPACE) -> LeanConnection:
        return LeanConnection(self.engine_port, read_key(self.home), workspace)

    @contextmanager
    def open_eye(self) -> Iterator[DatabaseEye]:
        """A look into the database, until the block ends."""
        data_dir = self.home / "pgdata"
        place = quote(str(socket_dir_for(data_dir, choose_home(data_dir).account)), safe="")
        with open_database_eye(f"postgresql://{ROLE}@/{DATABASE}?host={place}&port={PORT}") as eye:
            yield eye

    def wait_until(
        self, what: str, is_so: Callable[[], bool], seconds_max: float = START_SECONDS_MAX, look_seconds: float = LOOK_SECONDS
    ) -> None:
        """Look until it is so. A process that ended, or too much time, is BenchFailed."""
        give_up_at = time.monotonic() + seconds_max
        while not is_so():
            for name, process in self.processes.items():
                if process.poll() is not None:
                    raise BenchFailed(
                        f"The {name} ended with {process.returncode} before it was so that {what}.{self._last_words()}"
                    )
            if time.monotonic() > give_up_at:
                raise BenchFailed(f"After {seconds_max:g} s it still is not so that {what}.{self._last_words()}")
            time.sleep(look_seconds)

    def _last_words(self) -> str:
        words = self._log().decode(errors="replace").splitlines()[-15:]
        return "\nThe last lines of its log:\n" + "\n".join(line[:400] for line in words) if words else ""


@contextmanager
def open_system(*, runs_in_flight: int = 128, is_counted: bool = False) -> Iterator[BenchSystem]:
    """Start everything, wait until the engine has found the app, and stop all at the end."""
    with tempfile.TemporaryDirectory(prefix="durable-bench-") as home, ExitStack() as stop_all:
        # Run as root, Postgres is another user, who must get through.
        Path(home).chmod(0o755)
        engine_port, app_port, proxied_engine_port, proxied_app_port = free_ports(4)
        system = BenchSystem(Path(home), runs_in_flight, is_counted, engine_port, app_port, proxied_engine_port, proxied_app_port)
        for name in ("proxy", "app", "engine"):
            stop_all.callback(system.stop, name)
        if is_counted:
            system.start_proxy()
        system.start_app()
        system.start_engine()
        yield system


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _cpu(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)
