"""The run as decisions see it: the state that its row holds, what it remembers, and what it still waits for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal
from uuid import UUID

from protocol.calls import Kind

StepKind = Kind
RunState = Literal["ready", "delayed", "parked", "waiting", "leased", "cancelled"]
EndStatus = Literal["completed", "failed", "cancelled"]

# After so many broken invocations with no commit between, a run is held until a person looks at it: it may be what breaks them.
INTERRUPTIONS_MAX = 10
# How long code may not fit a run's history before that is final: longer than a rolling deploy takes.
MISMATCH_SECONDS_MAX = 3600.0
MISMATCH_DELAY_SECONDS_MAX = 60.0
UNDELIVERED_MAX = 10
MEMO_BYTES_MAX = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class LiveRun:
    """A run that has not ended, as its row was when it was locked."""

    run_id: UUID
    workspace_id: int
    function_id: int
    state: RunState
    generation: int
    position: int
    memo_bytes: int = 0
    attempt: int = 1
    interruptions: int = 0
    undelivered: int = 0
    mismatches: int = 0


@dataclass(frozen=True, slots=True)
class RecordedStep:
    """A memo entry, without its value."""

    kind: StepKind
    position: int
    is_abandoned: bool = False


@dataclass(frozen=True, slots=True)
class PendingRetry:
    """A step that failed and may be tried again: the number of its next try, and in how many seconds."""

    attempt: int
    in_seconds: float


@dataclass(frozen=True, slots=True)
class EarlierEvent:
    """An event that came before the wait for it did (lookback); `payload` is its JSON as the memo holds it."""

    event_id: UUID
    payload: str


@dataclass(frozen=True, slots=True)
class Recorded:
    """What the store knows of the steps that an outcome names, and of all that is open in the run."""

    steps: dict[str, RecordedStep] = field(default_factory=dict)
    waits: dict[str, StepKind] = field(default_factory=dict)
    retries: dict[str, PendingRetry] = field(default_factory=dict)
    failed_attempts: frozenset[tuple[str, int]] = frozenset()
    earlier_events: dict[str, EarlierEvent] = field(default_factory=dict)


NOTHING_RECORDED = Recorded()
