"""The witness: lines that step bodies append to a file and fsync when they start and when they end, outside of any database; and lines
of handlers, between steps.

`write` is for the app, `read` for tests. A line that was cut by a kill is no line.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE_VARIABLE = "WITNESS_FILE"
_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Line:
    """A body started or ended, or a handler went on (`what` "line") with the result of `step_id`. `key` is the concurrency key of
    its run, `is_ok` whether the body returned.
    """

    what: str
    run_id: str
    step_id: str
    attempt: int
    generation: int
    at: float
    pid: int
    function: str
    key: str
    is_ok: bool


@contextmanager
def witnessed(function: str, key: str = "") -> Iterator[None]:
    """Write that the body of the current step starts, and that it ended, whatever ended it."""
    import durable

    step = durable.current_step()
    words = {"run_id": step.run_id, "step_id": step.step_id, "attempt": step.attempt, "generation": step.generation,
             "pid": os.getpid(), "function": function, "key": key}  # fmt: skip
    write({"what": "start", **words, "is_ok": True})
    is_ok = False
    try:
        yield
        is_ok = True
    finally:
        write({"what": "end", **words, "is_ok": is_ok})


def went_on(step: Any, step_id: str, function: str) -> None:
    """Write that the handler has the result of this step and goes on. Called by handlers, again in each replay."""
    # The tools of a handler do not tell it which lease it runs under; the checker must know.
    invocation = step._execution.invocation
    words = {"run_id": invocation.run_id, "step_id": step_id, "attempt": 0, "generation": invocation.generation,
             "pid": os.getpid(), "function": function, "key": ""}  # fmt: skip
    write({"what": "line", **words, "is_ok": True})


def write(words: dict[str, Any]) -> None:
    """Append one line; it is on the disk when this returns."""
    with _lock:
        file = os.open(os.environ[FILE_VARIABLE], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, (json.dumps({**words, "at": time.time()}) + "\n").encode())
            os.fsync(file)
        finally:
            os.close(file)


def read(path: Path) -> list[Line]:
    """All lines so far, in the order in which they were written."""
    if not path.exists():
        return []
    return [Line(**json.loads(text)) for text in path.read_text().split("\n")[:-1]]
