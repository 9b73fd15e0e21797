"""The structs of requests from an app to the engine and of their answers (SPEC section 6). Shapes only, no
rules.

A request and its answer have the same `type`; they are told apart by the direction in which they travel.
"""

from typing import Annotated, Literal, TypeAlias

from msgspec import UNSET, Meta, Raw, Struct, UnsetType, field

from protocol import limits
from protocol.calls import Generation, MemoEntry, Retry
from protocol.manifest import Manifest, Workspace
from protocol.ops import Count, EventIn, Op, Seconds

RunStatus: TypeAlias = Literal["queued", "running", "waiting", "completed", "failed", "cancelled"]


class Refusal(Struct, frozen=True, omit_defaults=True):
    """The body of a 4xx or 5xx, and the `error` of a refused checkpoint entry. `place` is a JSON pointer."""

    code: str
    message: str
    hint: str | None = None
    place: str | None = None


class RefusedEntry(Struct, frozen=True):
    """An entry or line that names its run but breaks a rule: only that run has to hear of it. Never on the
    wire itself.
    """

    run_id: str
    generation: int
    error: Refusal


class CheckpointEntry(Struct, frozen=True):
    """`ends` makes it the end of the invocation. Without ops it asks for news and renews the lease."""

    run_id: str
    generation: Generation
    known: Count
    ops: list[Op]
    ends: bool = False


class Checkpoint(Struct, frozen=True, tag_field="type", tag="checkpoint"):
    workspace: Workspace
    entries: list[CheckpointEntry]


class EntryAnswer(Struct, frozen=True):
    """`lease_seconds` and the lists matter with `ok`, `error` with `refused`."""

    run_id: str
    generation: Generation
    status: Literal["ok", "stale", "cancelled", "refused"]
    lease_seconds: Seconds | UnsetType = UNSET
    resolved: list[MemoEntry] = field(default_factory=list)
    retries: list[Retry] = field(default_factory=list)
    abandoned: list[str] = field(default_factory=list)
    error: Refusal | UnsetType = UNSET


class CheckpointAnswer(Struct, frozen=True, tag_field="type", tag="checkpoint"):
    entries: list[EntryAnswer]


class AliveRun(Struct, frozen=True):
    """A run that an app executes. `open_seconds` is how much longer its open bodies may run by their timeouts: no lease goes
    past that.
    """

    run_id: str
    generation: Generation
    known: Count
    open_seconds: Seconds


class Alive(Struct, frozen=True, tag_field="type", tag="alive"):
    """One long poll per app process. `process` names it: a newer poll of the same process ends the older one."""

    workspace: Workspace
    process: str
    wait_seconds: Annotated[float, Meta(ge=0, le=limits.WAIT_SECONDS_MAX)]
    runs: list[AliveRun]


class AliveRunAnswer(Struct, frozen=True, omit_defaults=True):
    """`lease_seconds` (with `ok`) counts from the receipt of the answer; `resolved` is the memo beyond `known`."""

    run_id: str
    generation: Generation
    status: Literal["ok", "stale", "cancelled"] = "ok"
    lease_seconds: Seconds | UnsetType = UNSET
    resolved: list[MemoEntry] = field(default_factory=list)


class AliveAnswer(Struct, frozen=True, tag_field="type", tag="alive"):
    runs: list[AliveRunAnswer]


class Values(Struct, frozen=True, omit_defaults=True, tag_field="type", tag="values"):
    """Stores values for a run, or fetches values of its memo: one of `store` and `fetch`."""

    workspace: Workspace
    run_id: str
    store: list[Raw] = field(default_factory=list)
    fetch: list[str] = field(default_factory=list)


class Value(Struct, frozen=True):
    ref: str
    data: Raw


class ValuesAnswer(Struct, frozen=True, omit_defaults=True, tag_field="type", tag="values"):
    """`refs` of what was stored, in order; or the `values` that fit into one answer, at least one: ask again for the others."""

    refs: list[str] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)


class Events(Struct, frozen=True, tag_field="type", tag="events"):
    workspace: Workspace
    events: list[EventIn]


class StartedRun(Struct, frozen=True):
    run_id: str
    function: str


class EventAnswer(Struct, frozen=True, omit_defaults=True):
    """The runs that the event made. `conflict`: the id was used before with another name or data."""

    id: str
    runs: list[StartedRun]
    duplicate: bool = False
    conflict: bool = False


class EventsAnswer(Struct, frozen=True, tag_field="type", tag="events"):
    events: list[EventAnswer]


class Start(Struct, frozen=True, omit_defaults=True, tag_field="type", tag="start"):
    workspace: Workspace
    function: str
    input: Raw = Raw(b"null")
    id: str | UnsetType = UNSET


class StartAnswer(Struct, frozen=True, tag_field="type", tag="start"):
    run_id: str
    duplicate: bool = False


class Result(Struct, frozen=True, tag_field="type", tag="result"):
    workspace: Workspace
    run_id: str
    wait_seconds: Annotated[float, Meta(ge=0, le=limits.WAIT_SECONDS_MAX)] = 0.0


class ResultAnswer(Struct, frozen=True, omit_defaults=True, tag_field="type", tag="result"):
    run_id: str
    status: RunStatus
    output: Raw | UnsetType = UNSET
    error: Raw | UnsetType = UNSET


class Sync(Struct, frozen=True, tag_field="type", tag="sync"):
    workspace: Workspace
    url: str
    manifest: Manifest


class SyncAnswer(Struct, frozen=True, tag_field="type", tag="sync"):
    functions: Count
    changed: bool
