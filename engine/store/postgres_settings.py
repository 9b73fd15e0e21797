"""The settings of the embedded Postgres, for a small durable queue.

All of them are on the command line: the command line of a running Postgres therefore tells whether it runs
with the settings that this engine wants, and nothing in the data directory has to be edited. Who needs others
runs a Postgres of their own (DATABASE_URL). Settings per table (autovacuum of the queue tables) belong to the
migrations.
"""

from __future__ import annotations

import os
from pathlib import Path

PORT = 5432
"""Names the socket file only: there is no TCP port."""

_MIB = 1024 * 1024


def postgres_command(postgres: Path, data_dir: Path, socket_dir: Path, *, fsync: bool) -> list[str]:
    """The whole command of the postmaster."""
    command = [str(postgres), "-D", str(data_dir)]
    for name, value in _settings(socket_dir, fsync=fsync).items():
        command += ["-c", f"{name}={value}"]
    return command


def _settings(socket_dir: Path, *, fsync: bool) -> dict[str, str]:
    memory = _memory_bytes()
    shared_buffers_mib = min(256, max(64, memory // 16 // _MIB))
    return {
        # Who may connect: the owner and root, over a socket in a private directory.
        "listen_addresses": "",
        "port": str(PORT),
        "unix_socket_directories": str(socket_dir),
        "unix_socket_permissions": "0700",
        "max_connections": "60",
        # The promise. Without fsync (tests only) a crash of the machine loses data; a crash of Postgres does
        # not.
        "fsync": "on" if fsync else "off",
        "full_page_writes": "on" if fsync else "off",
        # Even without fsync: a commit that was answered is in the kernel's hands, so that killing Postgres
        # loses nothing.
        "synchronous_commit": "on",
        # Size. Many engines share laptops with other programs; the hot part of a queue is small.
        "shared_buffers": f"{shared_buffers_mib}MB",
        "effective_cache_size": f"{max(128, memory // 2 // _MIB)}MB",
        "wal_compression": "on",
        # Statements are short: compiling them, or spreading them over workers (which need /dev/shm), costs
        # more than it gives.
        "jit": "off",
        "max_parallel_workers_per_gather": "0",
        # Queue tables rot within seconds; how often the tables are looked at is not a setting per table.
        "autovacuum_naptime": "10s",
        # A killed engine's statements end, and its locks go, within a second; else they go on to their end.
        "client_connection_check_interval": "1s",
        "TimeZone": "UTC",
        "log_timezone": "UTC",
        "log_line_prefix": "%m [%p] ",
        "log_checkpoints": "off",
        "log_autovacuum_min_duration": "-1",
    }


def _memory_bytes() -> int:
    """What this process may use: the machine's memory, or less in a container."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = [machine]
    for limit_file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            said = Path(limit_file).read_text().strip()
        except OSError:
            continue
        if said.isdigit():
            limits.append(int(said))
    return min(limits)
