"""What a decision asks the store to write: one value that says everything, so that deciding and doing stay apart.

Times are seconds from now: the database's clock turns them into instants, so a transition can not be wrong about the time.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from engine.core.run import EndStatus, StepKind
from protocol.ops import SendEvents


@dataclass(frozen=True, slots=True)
class NewMemo:
    """A memo entry to write; its position is the run's next one."""

    step_id: str
    kind: StepKind
    data: str | None = None
    error: str | None = None
    is_abandoned: bool = False
    event_id: UUID | None = None
    attempt: int = 1
    seen: int = 0
    started_at: datetime | None = None
    duration_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class NewWait:
    """A wait to register. Its end is `seconds` from now, or the instant `until`."""

    step_id: str
    kind: StepKind
    seconds: float | None = None
    until: datetime | None = None
    event_name: str | None = None
    match: str | None = None
    condition: str | None = None
    has_lookback: bool = True


@dataclass(frozen=True, slots=True)
class FailedAttempt:
    """A try of a step that failed, for the trace."""

    step_id: str
    attempt: int
    error: str
    started_at: datetime | None
    duration_seconds: float | None


@dataclass(frozen=True, slots=True)
class Stay:
    """The invocation goes on."""


@dataclass(frozen=True, slots=True)
class Ready:
    """Due at once."""


@dataclass(frozen=True, slots=True)
class Delayed:
    """Due in `seconds`."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Waiting:
    """Nothing to do until a wait ends."""


@dataclass(frozen=True, slots=True)
class Parked:
    """Held, for a cause that a person can read."""

    cause: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The run is over."""

    status: EndStatus
    output: str | None = None
    error: str | None = None


Next = Stay | Ready | Delayed | Waiting | Parked | Ended


@dataclass(frozen=True, slots=True)
class Counters:
    """The counts of failures, as they are after the transition."""

    attempt: int
    interruptions: int
    undelivered: int
    mismatches: int = 0


@dataclass(frozen=True, slots=True)
class LaneHold:
    """No run of the lane (or of any lane of its app) is claimed for a while."""

    cause: str
    detail: str
    whole_app: bool
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Transition:
    """Everything that one outcome changes, and what the app is told."""

    next: Next
    counters: Counters
    memo: tuple[NewMemo, ...] = ()
    waits: tuple[NewWait, ...] = ()
    dropped_waits: tuple[str, ...] = ()
    failed_attempts: tuple[FailedAttempt, ...] = ()
    retries: tuple[tuple[str, int, float], ...] = ()
    dropped_retries: tuple[str, ...] = ()
    sends: tuple[SendEvents, ...] = ()
    taken_events: tuple[UUID, ...] = ()
    answered_abandoned: tuple[str, ...] = ()
    answered_retries: tuple[tuple[str, int, float], ...] = ()
    has_open: bool | None = None
    """Whether waits or retries are open afterwards; None when the outcome changes nothing of that."""
    invocation_outcome: str | None = None
    invocation_detail: str | None = None
    lane_hold: LaneHold | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """The outcome can not be applied; nothing of it is written."""

    code: str
    message: str
    hint: str
