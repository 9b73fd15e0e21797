"""Short questions about one run of a system under test: to the witness, and to the tables."""

from __future__ import annotations

from typing import Any

from tests.system.system import System
from tests.system.witness_log import Line


def start_run(system: System, name: str, data: object, event_id: str) -> str:
    """Send an event that starts one run; the run's id."""
    [started] = system.client().send_logged(name, data, event_id).runs
    return started.run_id


def start_many(system: System, name: str, data: list[dict[str, Any]], prefix: str, *, engine: int = 0) -> list[str]:
    """Send events in one message, each of which starts one run; their ids, in order."""
    events = [(name, each, f"{prefix}-{number}") for number, each in enumerate(data)]
    return [started.run_id for answer in system.client(engine).send_many_logged(events) for started in answer.runs]


def body_starts(system: System, run_id: str, step_id: str | None = None) -> list[Line]:
    """When and where bodies of the run started, of one step or of all."""
    return [
        line for line in system.witness() if line.what == "start" and line.run_id == run_id and step_id in (None, line.step_id)
    ]


def has_returned(system: System, run_id: str, step_id: str, pid: int) -> bool:
    """Whether the body of a step has come to its end in that process."""
    return any(
        line.what == "end" and (line.run_id, line.step_id, line.pid) == (run_id, step_id, pid) for line in system.witness()
    )


def ended_as(system: System, run_id: str) -> str | None:
    """How the run has ended; None while it has not."""
    rows = system.query("SELECT status FROM run_end WHERE run_id = $1::text::uuid", run_id)
    return rows[0]["status"] if rows else None


def output_of(system: System, run_id: str) -> str | None:
    [row] = system.query("SELECT output FROM run_end WHERE run_id = $1::text::uuid", run_id)
    return row["output"]


def invocations_of(system: System, run_id: str) -> list[dict[str, Any]]:
    """The invocations that have ended, in order."""
    return system.query(
        "SELECT outcome, attempt, detail FROM invocation WHERE run_id = $1::text::uuid ORDER BY generation", run_id
    )
