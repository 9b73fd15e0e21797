"""A whole system of real processes: Postgres, one or more engines, and an app, with their addresses, keys and logs.

`open_system()` starts it and stops everything at the end, also after a failure, when it prints the logs and keeps them. With one
engine it is `durable dev` with its embedded Postgres; with more, `durable start` on a Postgres of its own.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

from durable.wire import Workspace
from engine.store.postgres_cluster import DATABASE, ROLE
from engine.store.postgres_home import choose_home
from engine.store.postgres_settings import PORT
from engine.store.socket_dir import socket_dir_for
from engine.transport.api_client import ApiClient, path_of
from tests.system import call_log, sql, witness_log
from tests.system.fault_proxy import FaultProxy, open_proxy
from tests.system.logged_client import LoggedClient, read_client_log
from tests.system.processes import _BASE, ROOT, Process, Processes, free_ports, wait_until

LEASE_SECONDS = 4.0
START_SECONDS_MAX = 60.0
WITNESS_APP = "tests.system.witness_app:asgi"


@dataclass
class System:
    """The running system. `to_app` and `to_engine` are proxies, where they were asked for."""

    place: Path
    processes: Processes
    mode: str
    engine_ports: Sequence[int]
    app_port: int
    lease_seconds: float
    drain_seconds: float
    workspace: Workspace = field(default_factory=lambda: Workspace("shop", "dev"))
    to_app: FaultProxy | None = None
    to_engine: FaultProxy | None = None
    signing_key: str = ""
    token: str = ""
    more_app_urls: Sequence[str] = ()
    has_failed: bool = False

    # Who runs.

    def engine(self, number: int = 0) -> Process:
        return self.processes.by_name[f"engine{number}"]

    @property
    def app(self) -> Process:
        return self.processes.by_name["app"]

    def start_engine(self, number: int = 0, *, crash_at: str = "", is_awaited: bool = True) -> Process:
        """Start an engine, on the port that it had before."""
        words = ["--port", str(self.engine_ports[number]), "--lease-seconds", f"{self.lease_seconds:g}",
                 "--drain-seconds", f"{self.drain_seconds:g}"]  # fmt: skip
        if self.mode == "dev":
            words += ["--data-dir", str(self.data_dir)]
            for url in (self.app_url, *self.more_app_urls):
                words += ["--app-url", url]
        environment = {**self.environment(), "DURABLE_CRASH_AT": crash_at}
        if self.mode == "start":
            environment |= {"DATABASE_URL": self.dsn, "DURABLE_SECRET_KEY": "s" * 40, "DURABLE_ALLOWED_NETWORKS": "127.0.0.0/8"}
        started = self.processes.start(f"engine{number}", [sys.executable, "-m", "engine.main", self.mode, *words], environment)
        if is_awaited:
            wait_until(f"engine {number} is ready", lambda: self.is_ready(number), START_SECONDS_MAX)
        return started

    def start_app(
        self,
        module: str = WITNESS_APP,
        *,
        name: str = "app",
        port: int | None = None,
        worker: str = "asyncio",
        **environment: str,
    ) -> Process:
        """Start the app, on the port that it had before, or another process or app beside it."""
        # 0 workers: in the process itself, so that killing it kills the bodies.
        command = [sys.executable, "-m", "hypercorn", "--workers", "0", "-k", worker, "--log-level", "warning",
                   "--bind", f"127.0.0.1:{port or self.app_port}", module]  # fmt: skip
        return self.processes.start(name, command, {**self.environment(), **environment})

    def postmaster_pid(self) -> int:
        return int((self.data_dir / "postmaster.pid").read_text().split()[0])

    def balance_to(self, number: int) -> None:
        """Send what the app says to this engine from now on, as a load balancer does."""
        assert self.to_engine is not None
        self.to_engine.target = self.engine_ports[number]
        self.to_engine.drop_connections()

    # Where things are.

    @property
    def data_dir(self) -> Path:
        return self.place / "pgdata"

    @cached_property
    def dsn(self) -> str:
        socket = quote(str(socket_dir_for(self.data_dir, choose_home(self.data_dir).account)), safe="")
        return f"postgresql://{ROLE}@/{DATABASE}?host={socket}&port={PORT}"

    @property
    def app_url(self) -> str:
        return f"http://127.0.0.1:{self.to_app.port if self.to_app else self.app_port}/"

    def engine_url(self, number: int = 0) -> str:
        return f"http://127.0.0.1:{self.engine_ports[number]}"

    def environment(self) -> dict[str, str]:
        url = f"http://127.0.0.1:{self.to_engine.port}" if self.to_engine else self.engine_url()
        key = {"DURABLE_SIGNING_KEY": self.signing_key} if self.signing_key else {}
        return {
            "DURABLE_HOME": str(self.place / "home"),
            "DURABLE_ENV": self.workspace.env,
            "DURABLE_URL": url,
            witness_log.FILE_VARIABLE: str(self.witness_file),
            **key,
        }

    @property
    def witness_file(self) -> Path:
        return self.place / "witness.jsonl"

    @property
    def client_log(self) -> Path:
        return self.place / "client.jsonl"

    # Asking.

    def client(self, number: int = 0) -> LoggedClient:
        """A client of one engine, past any proxy."""
        return LoggedClient(self.workspace, self.engine_url(number), self.read_signing_key, self.client_log)

    def read_signing_key(self) -> str:
        return self.signing_key or (self.place / "home" / "dev.key").read_text().strip()

    def witness(self) -> list[witness_log.Line]:
        return witness_log.read(self.witness_file)

    def calls(self) -> list[call_log.ReceivedCall]:
        """The calls that the witness app got."""
        return call_log.read(self.witness_file)

    def acknowledged(self) -> list[dict[str, Any]]:
        return read_client_log(self.client_log)

    def query(self, text: str, *values: object) -> list[dict[str, Any]]:
        """Rows of plain SQL."""
        return sql.query(self.dsn, text, *values)

    def count(self, text: str, *values: object) -> int:
        [row] = self.query(text, *values)
        return int(next(iter(row.values())))

    def live_runs(self) -> int:
        """How many runs have not ended."""
        return self.count("SELECT count(*) FROM live_run")

    def durable(self, *words: str, number: int = 0) -> Any:
        """What a `durable` command answers. AssertionError with its words when it refuses."""
        environment = {**_BASE, **self.environment(), "DURABLE_URL": self.engine_url(number)}
        if self.token:
            environment["DURABLE_TOKEN"] = self.token
        command = [sys.executable, "-m", "engine.main", *words, "-o", "json"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=60)
        assert done.returncode == 0, f"durable {' '.join(words)}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return json.loads(done.stdout)

    def audit(self, number: int = 0) -> Any:
        """What `durable audit` asks, without the second that a command takes to start."""
        token = self.token or (self.place / "home" / "dev.token").read_text().strip()
        with ApiClient(self.engine_url(number), token) as api:
            return api.get(path_of("audit")).json

    def is_ready(self, number: int = 0) -> bool:
        """Whether an engine says that it is; AssertionError when it has ended instead of starting."""
        process = self.engine(number)
        assert process.is_alive(), f"Engine {number} ended with {process.wait(0)} instead of becoming ready."
        return http_status(self.engine_ports[number], "/readyz") == 200

    def knows_app(self) -> bool:
        """Whether an engine has read the manifest of the app."""
        try:
            return self.count("SELECT count(*) FROM app") > 0
        except (sql.DatabaseAway, sql.asyncpg.UndefinedTableError):
            return False

    def all_ended(self) -> bool:
        try:
            return self.live_runs() == 0
        except sql.DatabaseAway:
            return False

    def wait_all_ended(self, seconds: float = 60.0) -> None:
        """Wait until every run has ended; AssertionError names those that have not."""
        try:
            wait_until("all runs have ended", self.all_ended, seconds)
        except AssertionError as error:
            rows = self.query("SELECT l.*, f.name FROM live_run l JOIN function f USING (function_id) LIMIT 10")
            raise AssertionError(f"{error} Left: {rows}") from None


@contextmanager
def open_system(
    *,
    engines: int = 1,
    app: str | None = WITNESS_APP,
    app_worker: str = "asyncio",
    lease_seconds: float = LEASE_SECONDS,
    drain_seconds: float = 10.0,
    has_proxies: bool = False,
) -> Iterator[System]:
    """Start a system and wait until it runs; `app` None starts none, and then nothing is awaited of it."""
    place = Path(tempfile.mkdtemp(prefix="durable-system-"))
    # Run as root, Postgres is another user, who must get through.
    place.chmod(0o711)
    processes = Processes(place)
    system: System | None = None
    try:
        with ExitStack() as proxies:
            *engine_ports, app_port = free_ports(engines + 1)
            mode = "dev" if engines == 1 else "start"
            system = System(place, processes, mode, engine_ports, app_port, lease_seconds, drain_seconds)
            if has_proxies:
                system.to_app = proxies.enter_context(open_proxy(app_port))
                system.to_engine = proxies.enter_context(open_proxy(engine_ports[0]))
            _start(system, engines, app, app_worker)
            yield system
    except BaseException:
        print(f"The files of the system are kept in {place}.\n{processes.logs()}", file=sys.stderr)
        _stop(system, processes)
        raise
    _stop(system, processes)
    if not system.has_failed:
        shutil.rmtree(place, ignore_errors=True)


def _start(system: System, engines: int, app: str | None, app_worker: str) -> None:
    if system.mode == "start":
        postgres = system.processes.start(
            "postgres", [sys.executable, "-m", "tests.system.run_postgres", str(system.data_dir)], {}
        )
        wait_until("Postgres runs", lambda: _answers(system) if postgres.is_alive() else postgres.wait(0), START_SECONDS_MAX)
        _make_token(system)
    elif app is not None:
        system.start_app(app, worker=app_worker)
    for number in range(engines):
        system.start_engine(number, is_awaited=False)
    for number in range(engines):
        wait_until(f"engine {number} is ready", lambda number=number: system.is_ready(number), START_SECONDS_MAX)  # type: ignore[misc]
    if app is None:
        return
    if system.mode == "start":
        made = system.durable("key", "create", "--app", system.workspace.app, "--env", system.workspace.env)
        system.signing_key = made["key"]
        system.start_app(app, worker=app_worker)
        wait_until("the app answers", lambda: http_status(system.app_port, "/") > 0, START_SECONDS_MAX)
        register(system)
    wait_until("an engine knows the app", system.knows_app, START_SECONDS_MAX)


def register(system: System) -> None:
    """Tell the engine where the witness app is, as a deploy does."""
    from tests.system.witness_app import app

    client = system.client()
    client._functions = dict(app.functions)
    client.register_sync(system.app_url)


def _make_token(system: System) -> None:
    environment = {**_BASE, "DATABASE_URL": system.dsn, "DURABLE_HOME": str(system.place / "home")}
    command = [sys.executable, "-m", "engine.main", "token", "create", "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    system.token = json.loads(done.stdout)["token"]


def _answers(system: System) -> bool:
    try:
        return system.count("SELECT 1") == 1
    except (sql.DatabaseAway, FileNotFoundError):
        return False


def _stop(system: System | None, processes: Processes) -> None:
    """End all processes, and a Postgres whose engine was killed."""
    processes.stop_all()
    if system is None:
        return
    try:
        pid = system.postmaster_pid()
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError, IndexError):
        return
    # Only the Postgres of this very directory: the id may be another's by now.
    if str(system.data_dir).encode() in words:
        os.kill(pid, 3)  # SIGQUIT: at once, without its own clean-up
        wait_until("Postgres is gone", lambda: not Path(f"/proc/{pid}").exists(), 20)


def http_status(port: int, path: str) -> int:
    """The status of a GET; 0 when nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except OSError:
        return 0
    except http.client.HTTPException:
        return 0
    finally:
        connection.close()
