"""At most one engine per data directory.

The engine holds an flock on `<data_dir>.lock` as long as it lives; the kernel lets go of it whatever way the
engine ends. The file is beside the data, because the lock must be held before the data exists. Postgres never
inherits it (close-on-exec), so an orphaned Postgres does not keep the next engine out.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.store.embedded_postgres_error import EmbeddedPostgresError, as_sentence
from engine.store.postgres_account import Account


@contextmanager
def hold_data_dir(data_dir: Path, account: Account) -> Iterator[None]:
    """Hold the data directory, or refuse with the process id of the engine that does."""
    path = lock_path(data_dir)
    with as_sentence("open the lock file", path):
        opened = _open_lock(path, account)
    try:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _in_use(data_dir, opened) from None
        with as_sentence("write the lock file", path):
            os.ftruncate(opened, 0)
            os.pwrite(opened, f"{os.getpid()}\n".encode(), 0)
        yield
        # Not unlinked: another engine may be about to lock this very file, and would then lock a nameless
        # one.
        os.ftruncate(opened, 0)
    finally:
        os.close(opened)


def lock_path(data_dir: Path) -> Path:
    return data_dir.with_name(data_dir.name + ".lock")


def _open_lock(path: Path, account: Account) -> int:
    # Two tries without O_CREAT on an existing file: in a sticky directory such as /tmp the kernel
    # (fs.protected_regular) refuses O_CREAT on a file of another user, even to root.
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    while True:
        try:
            return os.open(path, flags)
        except FileNotFoundError:
            pass
        try:
            opened = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            continue
        if account.user is not None:
            # The owner of the data can then run the engine later without root.
            os.fchown(opened, account.uid, account.gid)
        return opened


def _in_use(data_dir: Path, opened: int) -> EmbeddedPostgresError:
    pid = os.pread(opened, 32, 0).decode("ascii", "replace").strip()
    whose = f"Another engine (process {pid})" if pid.isdigit() else "Another engine"
    stop = f"Stop it first (kill {pid})" if pid.isdigit() else "Stop it first"
    return EmbeddedPostgresError(
        "data_dir_in_use",
        f"{whose} uses the data directory {data_dir}. {stop}, or give this engine its own directory with --data-dir.",
    )
