"""Read a file in a directory that belongs to another account.

The engine may be root while the data directory is the system user's. Whoever took over that user could put a
link or a pipe there, so these reads follow no link, wait for nobody and are bounded.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path


def read_foreign_text(path: Path, *, from_byte: int = 0, bytes_max: int = 65_536) -> str | None:
    """The text of a regular file, or None if there is none."""
    try:
        opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(opened).st_mode):
            return None
        return os.pread(opened, bytes_max, from_byte).decode("utf-8", "replace")
    finally:
        os.close(opened)


def foreign_size_bytes(path: Path) -> int:
    """The size of a regular file, 0 if there is none."""
    try:
        found = path.lstat()
    except OSError:
        return 0
    return found.st_size if stat.S_ISREG(found.st_mode) else 0
