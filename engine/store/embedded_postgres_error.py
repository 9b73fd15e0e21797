"""The one error of the embedded Postgres: a stable code and a sentence that says what to do.

Everything that goes wrong below `open_embedded_postgres` (a full disk, a missing user, a second engine) is
turned into it at the border, so that whoever starts the engine reads a sentence and never a traceback.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class EmbeddedPostgresError(Exception):
    """The embedded Postgres can not run. The operator must act; the message says what, where and how."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@contextmanager
def as_sentence(doing: str, place: Path) -> Iterator[None]:
    """Turn an OSError into the sentence for it; `doing` completes "Could not …"."""
    try:
        yield
    except OSError as error:
        where = Path(error.filename) if isinstance(error.filename, str) else place
        raise EmbeddedPostgresError(_code_of(error), f"Could not {doing}: {_reason(error, where)}") from error


def sentence_for_output(doing: str, place: Path, output: str) -> EmbeddedPostgresError:
    """The error for a Postgres program that said `output` and failed."""
    said = _last_complaint(output)
    if "No space left on device" in output:
        return EmbeddedPostgresError(
            "disk_full",
            f"Could not {doing}: the disk that holds {place} is full. Free some space and start again. ({said})",
        )
    if "Permission denied" in output:
        return EmbeddedPostgresError(
            "no_permission",
            f"Could not {doing}: a permission is missing. Look at the owner and mode of {place}. ({said})",
        )
    return EmbeddedPostgresError("postgres_failed", f"Could not {doing} in {place}. Postgres says: {said}")


def _code_of(error: OSError) -> str:
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return "disk_full"
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return "no_permission"
        case _:
            return "postgres_failed"


def _reason(error: OSError, where: Path) -> str:
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return f"the disk that holds {where} is full. Free some space and start again."
        case errno.EACCES | errno.EPERM:
            return f"no permission for {where}. Choose a place of your own with --data-dir, or run the engine as its owner."
        case errno.EROFS:
            return f"{where} is on a read-only disk. Choose another place with --data-dir."
        case _:
            return f"{error.strerror or error} ({where})."


def _last_complaint(output: str) -> str:
    """The last line that carries a reason; Postgres follows it with hints and details of less use."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for line in reversed(lines):
        if any(word in line for word in ("PANIC:", "FATAL:", "error:", "ERROR:")):
            return line
    return lines[-1] if lines else "nothing"
