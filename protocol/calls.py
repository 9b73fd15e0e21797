"""The structs of a call from the engine to an app and of the app's reply (SPEC section 4). Shapes only, no
rules.

Payload fields are `msgspec.Raw`: the bytes as they came, never re-encoded.
"""

from datetime import datetime
from typing import Annotated, Literal, TypeAlias

from msgspec import UNSET, Meta, Raw, Struct, UnsetType, field

from protocol import limits
from protocol.manifest import Workspace
from protocol.ops import Attempt, Count, Op, Seconds

Generation: TypeAlias = Annotated[int, Meta(ge=1, le=limits.INTEGER_MAX)]
Kind: TypeAlias = Literal["step", "sleep", "wait_for_event", "send_events"]


class ManifestQuestion(Struct, frozen=True, tag_field="type", tag="manifest"):
    """`workspace.app` is "*" while the engine does not know who serves there."""

    workspace: Workspace


class Event(Struct, frozen=True):
    """An event as the engine hands it over."""

    id: str
    name: str
    data: Raw
    received_at: datetime


class MemoEntry(Struct, frozen=True, omit_defaults=True):
    """`data`, `ref` or `error`, or `abandoned`; none of them in an answer whose reader has the result itself.

    `ref` stands for a value that is fetched when it is needed; it has `bytes` bytes.
    """

    id: str
    kind: Kind
    position: Annotated[int, Meta(ge=1, le=limits.COUNT_MAX)]
    data: Raw | UnsetType = UNSET
    error: Raw | UnsetType = UNSET
    abandoned: bool = False
    ref: str | UnsetType = UNSET
    bytes: Count | UnsetType = UNSET


class Retry(Struct, frozen=True):
    """A failed step that may be tried again: `attempt` is the number of the next try, `in_seconds` the wait
    for it.
    """

    id: str
    attempt: Attempt
    in_seconds: Seconds


class OpenWait(Struct, frozen=True):
    """A wait that the engine has already."""

    id: str
    kind: Kind


class Invocation(Struct, frozen=True):
    run_id: str
    generation: Generation
    attempt: Attempt
    function: str
    event: Event
    lease_seconds: Seconds
    steps: list[MemoEntry] = field(default_factory=list)
    retries: list[Retry] = field(default_factory=list)
    waiting: list[OpenWait] = field(default_factory=list)
    traceparent: str | UnsetType = UNSET


class Invoke(Struct, frozen=True, tag_field="type", tag="invoke"):
    workspace: Workspace
    invocations: list[Invocation]


class Started(Struct, frozen=True, tag_field="type", tag="started"):
    run_id: str
    generation: Generation


class Ended(Struct, frozen=True, tag_field="type", tag="ended"):
    """`known` is the highest position that the handler was told."""

    run_id: str
    generation: Generation
    known: Count
    ops: list[Op]


class Invoked(Struct, frozen=True, tag_field="type", tag="invoked"):
    """The plain reply to invoke: all `ended` lines at once."""

    results: list[Ended]
