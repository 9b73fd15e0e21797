"""The words for where a run stands, as people and apps read them, made from its one row of state.

`queued`     due or held: it stands in its lane, or waits for a concurrency slot, or is held for a named cause
`running`    an engine has leased it and an app executes it
`waiting`    nothing to execute now: it sleeps, waits for an event, or waits for the time of a retry
`completed`, `failed`, `cancelled`   it has ended; a cancelled run has ended although its last invocation may not have
"""

from __future__ import annotations

from typing import Final

from protocol.requests import RunStatus

_STATUS_OF_STATE: Final[dict[str, RunStatus]] = {
    "ready": "queued",
    "parked": "queued",
    "leased": "running",
    "waiting": "waiting",
    "delayed": "waiting",
    "cancelled": "cancelled",
}
ENDED_STATUSES: Final[tuple[RunStatus, ...]] = ("completed", "failed", "cancelled")
STATUSES: Final[tuple[RunStatus, ...]] = ("queued", "running", "waiting", *ENDED_STATUSES)


def run_status(state: str | None, end_status: RunStatus | None) -> RunStatus:
    """The status of a run from `live_run.state` and `run_end.status`, of which one is there."""
    if end_status is not None:
        return end_status
    if state is None:
        raise ValueError("a run has neither a state nor an end")
    return _STATUS_OF_STATE[state]


def states_of(status: RunStatus) -> list[str]:
    """The states of live runs that this status means; none for an ended one."""
    if status in ENDED_STATUSES:
        return []
    return [state for state, word in _STATUS_OF_STATE.items() if word == status]
