"""A real engine and real apps for the examples, started with the very commands that the README shows.

Ports of the pages (8288 of the engine, 8000 of the app) are replaced by free ones; nothing else is changed.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.docs.markdown_blocks import ROOT, blocks_of

START_SECONDS_MAX = 60.0
README = ROOT / "README.md"


@dataclass
class Process:
    """A program that was started, and the lines that it has printed so far."""

    command: str
    popen: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    reader: threading.Thread = field(init=False)
    has_ended: bool = False
    news: threading.Condition = field(default_factory=threading.Condition)

    def __post_init__(self) -> None:
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            with self.news:
                self.lines.append(line.rstrip())
                self.news.notify_all()
        with self.news:
            self.has_ended = True
            self.news.notify_all()

    def wait_line(self, is_it: Callable[[str], bool], seconds_max: float = START_SECONDS_MAX) -> str:
        """The first line for which this is so."""
        with self.news:
            self.news.wait_for(lambda: self.has_ended or any(map(is_it, self.lines)), seconds_max)
            found = next(filter(is_it, self.lines), None)
        assert found is not None, f"{self.command} did not say it (within {seconds_max} s):\n" + "\n".join(self.lines)
        return found

    def wait_end(self) -> tuple[int, str]:
        """The exit code, and all that was said."""
        code = self.popen.wait(START_SECONDS_MAX)
        self.reader.join(START_SECONDS_MAX)
        return code, "\n".join(self.lines)

    def ask_to_stop(self) -> None:
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)

    def stop(self) -> int:
        self.ask_to_stop()
        try:
            return self.popen.wait(30)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            return self.popen.wait()


@dataclass
class Stand:
    """Where the examples run. `environment` is that of a reader's terminal, with DURABLE_ENV=dev."""

    home: Path
    engine_port: int
    app_port: int
    environment: dict[str, str]
    processes: list[Process] = field(default_factory=list)

    @property
    def engine_url(self) -> str:
        return f"http://127.0.0.1:{self.engine_port}"

    def adapted(self, text: str) -> str:
        """An example with the ports of this stand."""
        return text.replace("127.0.0.1:8288", f"127.0.0.1:{self.engine_port}").replace(
            "127.0.0.1:8000", f"127.0.0.1:{self.app_port}"
        )

    def start(self, command: str, cwd: Path | None = None, **variables: str) -> Process:
        """Start a command in the background, as a shell would."""
        popen = subprocess.Popen(
            # `env` takes the variables in front of a command, as a shell does, and leaves one process to stop.
            ["bash", "-c", f"exec env {command}"],
            cwd=cwd or self.home,
            env={**self.environment, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        process = Process(command, popen)
        self.processes.append(process)
        return process

    def close(self) -> None:
        """Stop everything, all at once."""
        for process in self.processes:
            process.ask_to_stop()
        for process in self.processes:
            process.stop()

    def shell(self, script: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self.home,
            env={**self.environment, **variables},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@contextmanager
def new_home() -> Iterator[Path]:
    """A home directory through which the user of the embedded Postgres can pass."""
    home = Path(tempfile.mkdtemp(prefix="durable-docs-"))
    home.chmod(0o711)
    # Else the engine makes it for its keys and for nobody else, and the data moves away from here.
    (home / ".durable").mkdir(mode=0o711)
    (home / ".durable").chmod(0o711)
    programs = home / "bin"
    programs.mkdir()
    # The commands as after `pip install`, also where only the sources are on the path.
    for name, module in (("durable", "engine.main"), ("hypercorn", "hypercorn"), ("uvicorn", "uvicorn"), ("flask", "flask")):
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m {module} "$@"\n')
        program.chmod(0o755)
    try:
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)


@contextmanager
def open_stand() -> Iterator[Stand]:
    """The README's engine, the README's app, and the apps of all other pages."""
    with new_home() as home:
        engine_port, app_port, readme_port = free_ports(3)
        environment = reader_environment(home, engine_port)
        stand = Stand(home, engine_port, app_port, environment)
        try:
            blocks = blocks_of(README)
            (home / "welcome.py").write_text(next(block.text for block in blocks if block.word("file") == "welcome.py"))
            run_engine, run_app = [block.text.strip() for block in blocks if "server" in block.words]
            stand.start(f"hypercorn --bind 127.0.0.1:{app_port} tests.docs.docs_app:asgi", cwd=ROOT)
            names = app_pages()
            urls = f"--app-url http://127.0.0.1:{readme_port}/ "
            urls += " ".join(f"--app-url http://127.0.0.1:{app_port}/{name}/" for name in names)
            shown_url = "--app-url http://127.0.0.1:8000/"
            assert shown_url in run_engine
            engine = stand.start(f"{run_engine.replace(shown_url, urls)} --port {engine_port}")
            stand.start(run_app.replace("127.0.0.1:8000", f"127.0.0.1:{readme_port}"))
            engine.wait_line(lambda line: "shop/dev with welcome" in line)
            for name in names:
                engine.wait_line(lambda line, name=name: f"/{name}/: " in line and " with " in line)  # type: ignore[misc]
            yield stand
        finally:
            stand.close()


def reader_environment(home: Path, engine_port: int) -> dict[str, str]:
    """The variables of a reader's terminal: nothing of the tests' own, and DURABLE_ENV=dev."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DURABLE_", "DATABASE_URL"))}
    return {
        **kept,
        "HOME": str(home),
        "PATH": f"{home / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'sdk_python'}",
        "PYTHONUNBUFFERED": "1",
        "DURABLE_ENV": "dev",
        "DURABLE_URL": f"http://127.0.0.1:{engine_port}",
    }


def app_pages() -> list[str]:
    """The pages whose app is served; in a process of its own, because reading them executes them."""
    script = "from tests.docs.docs_app import PATHS; print(*PATHS)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'sdk_python'}", "DURABLE_ENV": "dev"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports
