"""Real processes of a test: started with a log of their own, killed, frozen, awaited, and none left behind.

Owns the moments at which processes died: what a body had begun then has no end in the witness, and the checker asks here.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[2]
# Below the range that the kernel takes for outgoing connections: a client that connects to such a port while its server is down can
# otherwise be connected to itself.
PORTS = range(20_000, 32_000)


@dataclass
class Processes:
    """All processes of one test."""

    place: Path
    by_name: dict[str, Process] = field(default_factory=dict)
    died_at: dict[int, float] = field(default_factory=dict)
    frozen: dict[int, list[tuple[float, float]]] = field(default_factory=dict)

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> Process:
        """Start a process; its output goes to `<name>.log`, behind that of an earlier process of this name."""
        with open(self.place / f"{name}.log", "ab") as log:
            popen = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT, env={**_BASE, **environment},
            )  # fmt: skip
        process = Process(name, popen, self)
        self.by_name[name] = process
        return process

    def stop_all(self) -> None:
        """End what still runs. Not politely: the end of a test must not wait, and a drain has tests of its own."""
        for process in reversed(list(self.by_name.values())):
            process.kill9()

    def logs(self, lines_max: int = 60) -> str:
        """The last lines of every log, for the person who reads the failure."""
        parts = []
        for path in sorted(self.place.glob("*.log")):
            lines = path.read_text("utf-8", "replace").splitlines()
            parts.append(f"--- {path} ({len(lines)} lines)\n" + "\n".join(lines[-lines_max:]))
        return "\n".join(parts)


@dataclass
class Process:
    """One process."""

    name: str
    popen: subprocess.Popen[bytes]
    owner: Processes
    _frozen_at: float | None = None

    @property
    def pid(self) -> int:
        return self.popen.pid

    def is_alive(self) -> bool:
        return self._code() is None

    def kill9(self) -> None:
        self.popen.kill()
        self.wait(20)

    def terminate(self) -> None:
        """SIGTERM: the polite one, which an engine answers with a drain."""
        self.popen.terminate()

    def freeze(self) -> None:
        """SIGSTOP: alive for the kernel, dead for everybody who waits for it."""
        os.kill(self.pid, signal.SIGSTOP)
        self._frozen_at = time.time()

    def thaw(self) -> None:
        if self._frozen_at is not None:
            self.owner.frozen.setdefault(self.pid, []).append((self._frozen_at, time.time()))
            self._frozen_at = None
            os.kill(self.pid, signal.SIGCONT)

    def wait(self, seconds: float) -> int:
        """Its exit code; 137 too for a process that SIGKILL ended."""
        give_up_at = time.monotonic() + seconds
        while (code := self._code()) is None:
            if time.monotonic() > give_up_at:
                raise AssertionError(f"The process {self.name} ({self.pid}) still runs after {seconds:g} s.")
            time.sleep(0.005)
        return code

    def open_files(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def memory_bytes(self) -> int:
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def _code(self) -> int | None:
        code = self.popen.poll()
        if code is None:
            return None
        self.owner.died_at.setdefault(self.pid, time.time())
        return 128 - code if code < 0 else code


def wait_until(what: str, is_so: Callable[[], T], seconds: float = 30.0) -> T:
    """Look until it is so; what the condition gave. The sentence says what was awaited in vain."""
    give_up_at = time.monotonic() + seconds
    while True:
        found = is_so()
        if found:
            return found
        if time.monotonic() > give_up_at:
            raise AssertionError(f"After {seconds:g} s it still is not so that {what}.")
        time.sleep(0.03)


def free_ports(count: int) -> list[int]:
    """Ports that nobody uses now and the kernel gives to nobody."""
    found: list[int] = []
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as tried:
            # As servers do, or connections that ended a moment ago make a port look used.
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                tried.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise AssertionError("There is no free port.")


_BASE = {
    "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
    "PYTHONPATH": f"{ROOT}:{ROOT / 'sdk_python'}",
    "PYTHONUNBUFFERED": "1",
    "HOME": "/nonexistent",
}
