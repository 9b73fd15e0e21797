"""A step that the handler has called and that has no result yet: what it is, and where it stands.

Plain records; the execution changes them.
"""

from collections.abc import Callable
from contextvars import Context, copy_context
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from msgspec import Raw

from durable.runtime import Job, Reply
from durable.wire import Backoff, Kind


class StepState(Enum):
    """Where an open step stands. Only PLANNED, RUNNING and REPORTED keep an invocation alive."""

    PLANNED = auto()  # its body is to be started
    RUNNING = auto()  # its body runs
    REPORTED = auto()  # its op needs the engine's answer before anything can happen
    WAITING = auto()  # the engine resolves it some time: a wait, a sleep
    BACKING_OFF = auto()  # its body failed and is tried again at `due_at`
    ABANDONED = auto()  # never resolved; an earlier turn of the handler gave it up
    RESOLVED = auto()  # in the memo, delivered as soon as its turn comes


@dataclass(slots=True)
class Body:
    """What `step.run` was given. `context` holds the caller's context variables."""

    call: Callable[[], Any]
    is_async: bool
    retries: int | None
    backoff: Backoff | None
    timeout_seconds: float
    context: Context


@dataclass(slots=True, eq=False)
class OpenStep:
    """A step that the handler has called and that has not given it a result yet."""

    given_id: str
    id: str
    kind: Kind
    read: Callable[[Any], Any]
    body: Body | None = None
    reply: Reply | None = None
    state: StepState = StepState.PLANNED
    attempt: int = 1
    due_at: float = 0.0
    is_delivered: bool = False
    job: Job | None = None
    # When the timeout of its running body is over, by the monotonic clock.
    body_ends_at: float = 0.0
    # What its body returned: as it travels, and as the handler gets it.
    result: Raw | None = None
    value: Any = None


def new_body(
    call: Callable[[], Any],
    *,
    is_async: bool,
    retries: int | None,
    backoff: Backoff | None,
    timeout_seconds: float,
) -> Body:
    """A body with the context variables of the code that calls the step."""
    return Body(call, is_async, retries, backoff, timeout_seconds, copy_context())
