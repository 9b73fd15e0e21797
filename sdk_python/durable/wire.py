"""The messages of the wire protocol as structs; `wire_codec` has the way between them and bytes.

Shapes only: what the ops mean is the executor's. Payloads (`data`,
`error`, `output`) are `msgspec.Raw`, the JSON as it came. A Raw is a view of the whole message, which therefore
stays in memory; `bytes(raw)` copies.
"""

from datetime import datetime
from typing import Final, Literal, TypeAlias

from msgspec import UNSET, Raw, Struct, UnsetType, field

Kind: TypeAlias = Literal["step", "sleep", "wait_for_event", "send_events"]
MatchValue: TypeAlias = str | int | float | bool | None

PROTOCOL_VERSION: Final = 1
BODY_BYTES_MAX: Final = 64 << 20
EVENT_BYTES_MAX: Final = 1 << 20
STEP_RESULT_BYTES_MAX: Final = 4 << 20
ERROR_BYTES_MAX: Final = 64 << 10
EVENTS_PER_MESSAGE_MAX: Final = 1_000
ENTRIES_PER_MESSAGE_MAX: Final = 1_000


# Used in both directions.


class Workspace(Struct, frozen=True):
    """An app in an environment. `app` is "*" only in the engine's first question to an unknown app."""

    app: str
    env: str

    def __str__(self) -> str:
        return f"{self.app}/{self.env}"


class Backoff(Struct, frozen=True):
    initial_seconds: float = 1.0
    factor: float = 2.0
    max_seconds: float = 3600.0
    jitter: bool = True


class EventIn(Struct, frozen=True, omit_defaults=True):
    """An event as an app sends it. `id` deduplicates for 24 hours."""

    name: str
    data: Raw
    id: str | UnsetType = UNSET


class MemoEntry(Struct, frozen=True, omit_defaults=True):
    """A remembered result: `data`, `ref` or `error`, or `abandoned`. In a checkpoint's answer a `step` may have none of them:
    the app then has the result itself. `ref` is fetched when the step is awaited; the value has `bytes` bytes.
    """

    id: str
    kind: Kind
    position: int
    data: Raw | UnsetType = UNSET
    error: Raw | UnsetType = UNSET
    abandoned: bool = False
    ref: str | UnsetType = UNSET
    bytes: int | UnsetType = UNSET


class Retry(Struct, frozen=True):
    """A failed step that may be tried again: `attempt` is the number of the next try, `in_seconds` the wait for it."""

    id: str
    attempt: int
    in_seconds: float


class OpenWait(Struct, frozen=True):
    """A wait that the engine has already; it need not be sent again."""

    id: str
    kind: Kind


class WireRefusal(Struct, frozen=True, omit_defaults=True):
    """The body of a 4xx or 5xx, and the `error` of a refused entry. `place` is a JSON pointer."""

    code: str
    message: str
    hint: str | None = None
    place: str | None = None


class ErrorWords(Struct, frozen=True, omit_defaults=True):
    """What is inside of an `error` payload."""

    name: str
    message: str
    stack: str | None = None
    code: str | None = None


# The ops that an invocation reports.


class StepOp(Struct, frozen=True, omit_defaults=True, tag_field="op", tag="step"):
    """The body returned `data`, or the value that was stored as `ref`. `seen`: the highest position delivered to the handler
    when the body started.
    """

    id: str
    attempt: int
    started_at: datetime
    duration_seconds: float
    seen: int
    data: Raw | UnsetType = UNSET
    ref: str | UnsetType = UNSET


class StepErrorOp(Struct, frozen=True, omit_defaults=True, tag_field="op", tag="step_error"):
    """The body failed. The engine decides between a retry and a memo entry with `error`."""

    id: str
    error: Raw
    retriable: bool
    attempt: int
    started_at: datetime
    duration_seconds: float
    seen: int
    retry_after_seconds: float | None = None
    retries: int | None = None
    backoff: Backoff | None = None


class SleepOp(Struct, frozen=True, omit_defaults=True, tag_field="op", tag="sleep"):
    """Exactly one of `seconds` and `until` (an aware instant in UTC)."""

    id: str
    seconds: float | None = None
    until: datetime | None = None


class WaitForEventOp(Struct, frozen=True, omit_defaults=True, tag_field="op", tag="wait_for_event", rename={"if_": "if"}):
    id: str
    event: str
    timeout_seconds: float
    match: dict[str, MatchValue] | None = None
    if_: str | None = None
    lookback: bool = True


class SendEventsOp(Struct, frozen=True, tag_field="op", tag="send_events"):
    id: str
    events: list[EventIn]


class AbandonOp(Struct, frozen=True, tag_field="op", tag="abandon"):
    ids: list[str]


class CompleteOp(Struct, frozen=True, tag_field="op", tag="complete"):
    output: Raw


class FailOp(Struct, frozen=True, omit_defaults=True, tag_field="op", tag="fail"):
    error: Raw
    retriable: bool
    retry_after_seconds: float | None = None


class YieldOp(Struct, frozen=True, tag_field="op", tag="yield"):
    pass


class UnknownFunctionOp(Struct, frozen=True, tag_field="op", tag="unknown_function"):
    pass


Op: TypeAlias = (
    StepOp | StepErrorOp | SleepOp | WaitForEventOp | SendEventsOp | AbandonOp | CompleteOp | FailOp | YieldOp | UnknownFunctionOp
)


# Engine to app, and the app's reply.


class ManifestQuestion(Struct, frozen=True, tag_field="type", tag="manifest"):
    workspace: Workspace


class WireEvent(Struct, frozen=True):
    """An event as the engine hands it over."""

    id: str
    name: str
    data: Raw
    received_at: datetime


class Invocation(Struct, frozen=True):
    """One hand-over of a run. `lease_seconds` counts from the receipt of the call."""

    run_id: str
    generation: int
    attempt: int
    function: str
    event: WireEvent
    steps: list[MemoEntry] = field(default_factory=list)
    retries: list[Retry] = field(default_factory=list)
    waiting: list[OpenWait] = field(default_factory=list)
    lease_seconds: float = 30.0
    traceparent: str | UnsetType = UNSET


class Invoke(Struct, frozen=True, tag_field="type", tag="invoke"):
    workspace: Workspace
    invocations: list[Invocation]


class Started(Struct, frozen=True, tag_field="type", tag="started"):
    run_id: str
    generation: int


class Ended(Struct, frozen=True, tag_field="type", tag="ended"):
    """The end of an invocation. `known` is the highest position that the handler was told."""

    run_id: str
    generation: int
    known: int
    ops: list[Op]


class WireTrigger(Struct, frozen=True, omit_defaults=True, rename={"if_": "if"}):
    event: str
    if_: str | None = None


class WireConcurrency(Struct, frozen=True, omit_defaults=True):
    limit: int
    key: str | None = None


class FunctionConfig(Struct, frozen=True):
    """A function in the manifest."""

    id: str
    name: str
    triggers: list[WireTrigger]
    retries: int
    backoff: Backoff
    concurrency: list[WireConcurrency]
    step_timeout_seconds: float


class Batch(Struct, frozen=True):
    max: int = 1


class Capabilities(Struct, frozen=True):
    checkpoint: bool = True
    batch: Batch = Batch()
    refs: bool = False
    alive: bool = False


class Sdk(Struct, frozen=True):
    name: str
    version: str


class Manifest(Struct, frozen=True, tag_field="type", tag="manifest"):
    workspace: Workspace
    sdk: Sdk
    protocol: list[int]
    capabilities: Capabilities
    deployment: str
    max_body: int
    functions: list[FunctionConfig]


# App to engine.


class CheckpointEntry(Struct, frozen=True):
    """`ends` makes it the end of the invocation. Without ops it asks for news and renews the lease."""

    run_id: str
    generation: int
    known: int
    ops: list[Op]
    ends: bool = False


class Checkpoint(Struct, frozen=True, tag_field="type", tag="checkpoint"):
    workspace: Workspace
    entries: list[CheckpointEntry]


class AliveRun(Struct, frozen=True):
    """A run that this process executes. `open_seconds`: how much longer its open bodies may run by their timeouts."""

    run_id: str
    generation: int
    known: int
    open_seconds: float


class Alive(Struct, frozen=True, tag_field="type", tag="alive"):
    workspace: Workspace
    process: str
    wait_seconds: float
    runs: list[AliveRun]


class Values(Struct, frozen=True, omit_defaults=True, tag_field="type", tag="values"):
    """Stores values for a run, or fetches values of its memo."""

    workspace: Workspace
    run_id: str
    store: list[Raw] = field(default_factory=list)
    fetch: list[str] = field(default_factory=list)


class Events(Struct, frozen=True, tag_field="type", tag="events"):
    workspace: Workspace
    events: list[EventIn]


class Start(Struct, frozen=True, omit_defaults=True, tag_field="type", tag="start"):
    workspace: Workspace
    function: str
    input: Raw
    id: str | UnsetType = UNSET


class Result(Struct, frozen=True, tag_field="type", tag="result"):
    workspace: Workspace
    run_id: str
    wait_seconds: float


class Sync(Struct, frozen=True, tag_field="type", tag="sync"):
    workspace: Workspace
    url: str
    manifest: Manifest


# The engine's answers: they have the `type` of their request.


class EntryAnswer(Struct, frozen=True):
    """`lease_seconds` and the lists matter with `ok`, `error` with `refused`."""

    run_id: str
    generation: int
    status: Literal["ok", "stale", "cancelled", "refused"]
    lease_seconds: float | UnsetType = UNSET
    resolved: list[MemoEntry] = field(default_factory=list)
    retries: list[Retry] = field(default_factory=list)
    abandoned: list[str] = field(default_factory=list)
    error: WireRefusal | UnsetType = UNSET


class CheckpointAnswer(Struct, frozen=True, tag_field="type", tag="checkpoint"):
    entries: list[EntryAnswer]


class AliveRunAnswer(Struct, frozen=True):
    """`lease_seconds` (with `ok`) counts from the receipt of the answer; `resolved` is the memo beyond `known`."""

    run_id: str
    generation: int
    status: Literal["ok", "stale", "cancelled"] = "ok"
    lease_seconds: float | UnsetType = UNSET
    resolved: list[MemoEntry] = field(default_factory=list)


class AliveAnswer(Struct, frozen=True, tag_field="type", tag="alive"):
    runs: list[AliveRunAnswer]


class Value(Struct, frozen=True):
    ref: str
    data: Raw


class ValuesAnswer(Struct, frozen=True, tag_field="type", tag="values"):
    """`refs` of what was stored, in order; or the `values` that fitted into one answer."""

    refs: list[str] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)


class StartedRun(Struct, frozen=True):
    run_id: str
    function: str


class EventAnswer(Struct, frozen=True, omit_defaults=True):
    """The runs that an event made. `conflict`: its id was used before with another name or data."""

    id: str
    runs: list[StartedRun]
    duplicate: bool = False
    conflict: bool = False


class EventsAnswer(Struct, frozen=True, tag_field="type", tag="events"):
    events: list[EventAnswer]


class StartAnswer(Struct, frozen=True, tag_field="type", tag="start"):
    run_id: str
    duplicate: bool = False


class ResultAnswer(Struct, frozen=True, tag_field="type", tag="result"):
    run_id: str
    status: Literal["queued", "running", "waiting", "completed", "failed", "cancelled"]
    output: Raw | UnsetType = UNSET
    error: Raw | UnsetType = UNSET


class SyncAnswer(Struct, frozen=True, tag_field="type", tag="sync"):
    functions: int
    changed: bool
