"""Files that hold a secret of this machine: readable by their owner alone, written whole or not at all, refused otherwise.

It makes the directory when it is missing (0700), and never changes the mode of one that exists.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path

# A key or token is short; a file that is longer is not ours.
FILE_BYTES_MAX = 4_096


class PrivateFileRefused(Exception):
    """The file or its directory can not be used safely; the text says what to change."""

    code = "private_file_refused"


def read_or_create_private_file(path: Path, make: Callable[[], str]) -> str:
    """The secret in `path`; if there is none, that of `make`. Two processes that come at once get the same."""
    found = read_private_file(path)
    if found is not None:
        return found
    _make_directory(path.parent)
    _write_once(path, make())
    written = read_private_file(path)
    if written is None:
        raise PrivateFileRefused(f"{path} vanished while it was written. Is something cleaning up {path.parent}?")
    return written


def read_private_file(path: Path) -> str | None:
    """The secret in `path` without white space around it, or None when there is no such file."""
    try:
        opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise PrivateFileRefused(f"{path} can not be read ({error.strerror}). Remove it, or run as its owner.") from error
    try:
        _require_private(path, os.fstat(opened))
        text = os.read(opened, FILE_BYTES_MAX + 1)
    finally:
        os.close(opened)
    if len(text) > FILE_BYTES_MAX or not text.strip() or not text.isascii():
        raise PrivateFileRefused(f"{path} does not hold a secret. Remove it, and a new one is made.")
    return text.decode("ascii").strip()


def _require_private(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise PrivateFileRefused(f"{path} is not a regular file. Remove it, and a new one is made.")
    if found.st_uid != os.geteuid():
        raise PrivateFileRefused(
            f"{path} belongs to the user id {found.st_uid}, and this process runs as {os.geteuid()}. "
            "Run as its owner, or set DURABLE_HOME to a directory of your own."
        )
    if found.st_mode & 0o077:
        raise PrivateFileRefused(
            f"{path} can be used by others (mode {stat.S_IMODE(found.st_mode):04o}), so its secret may be known. "
            f"Remove it to get a new one, or, if you trust the machine: chmod 600 {path}"
        )


def _make_directory(directory: Path) -> None:
    try:
        # Run as root, the embedded Postgres is another user, and its data may lie below: it may pass, not look.
        directory.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)
        found = directory.stat()
    except OSError as error:
        raise PrivateFileRefused(
            f"The directory {directory} can not be made ({error.strerror}). Set DURABLE_HOME to one that can."
        ) from error
    # Others who may write there could put a secret of their own under the name. Passing through (0711) is harmless.
    if found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX:
        raise PrivateFileRefused(
            f"Others may write in {directory} (mode {stat.S_IMODE(found.st_mode):04o}). Mend it with: chmod go-w {directory}"
        )


def _write_once(path: Path, text: str) -> None:
    """Put the file there whole, unless another process was quicker."""
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        opened = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(opened, 0o600)
            os.write(opened, text.encode("ascii") + b"\n")
            os.fsync(opened)
        finally:
            os.close(opened)
        try:
            # A link, not a rename: it fails when the name is taken, so the first writer's secret stays.
            os.link(unfinished, path)
        except FileExistsError:
            return
        finally:
            unfinished.unlink()
    except OSError as error:
        raise PrivateFileRefused(
            f"{path} can not be written ({error.strerror}). Set DURABLE_HOME to another directory."
        ) from error
