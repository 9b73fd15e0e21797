"""The directory of Postgres' socket.

It is the data directory itself: private already, and it leaves nothing behind elsewhere. Where that path is
too long for a socket (107 bytes) or holds characters that Postgres or asyncpg read as separators, it is a
private directory in /tmp, named by the data directory, so that every start takes the same one.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from pathlib import Path

from engine.store.embedded_postgres_error import EmbeddedPostgresError, as_sentence
from engine.store.postgres_account import Account
from engine.store.postgres_settings import PORT

_SOCKET_PATH_BYTES_MAX = 107
_SHORT_DIRS = Path("/tmp")
"""Not TMPDIR, which may be long, and differ between two starts."""


def socket_dir_for(data_dir: Path, account: Account) -> Path:
    """The socket's directory for the data directory; nothing is created."""
    socket = os.fsencode(data_dir / f".s.PGSQL.{PORT}")
    if len(socket) <= _SOCKET_PATH_BYTES_MAX and re.fullmatch(rb"[A-Za-z0-9/._+-]+", socket):
        return data_dir
    named = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]
    return _SHORT_DIRS / f"durable-{account.uid}-{named}"


def make_socket_dir(socket_dir: Path, data_dir: Path, account: Account) -> None:
    """Make sure that the directory is there and the account's alone."""
    if socket_dir == data_dir:
        return
    with as_sentence("make the directory of Postgres' socket", socket_dir):
        try:
            socket_dir.mkdir(mode=0o700)
        except FileExistsError:
            pass
        else:
            if account.user is not None:
                os.chown(socket_dir, account.uid, account.gid, follow_symlinks=False)
        found = socket_dir.lstat()
    # /tmp is everybody's: someone else may have been there first.
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != account.uid or found.st_mode & 0o077:
        raise EmbeddedPostgresError(
            "no_permission",
            f"{socket_dir} is not a private directory of the user id {account.uid}, "
            "so Postgres' socket is not put there. "
            "Remove it, or name a shorter --data-dir.",
        )


def remove_socket_dir(socket_dir: Path, data_dir: Path) -> None:
    """Remove what `make_socket_dir` made, once Postgres has gone."""
    if socket_dir == data_dir:
        return
    try:
        socket_dir.rmdir()
    except OSError:
        # Postgres was killed and left its socket; the next start uses the same directory.
        return
