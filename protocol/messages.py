"""Every message of the protocol: bytes into structs and back. One decoder per place where bytes arrive, one
`encode`.

A decoder checks the JSON strictly, then the shape, then names and limits, and raises `JsonRefused` or
`MessageRefused`, nothing else, whatever the bytes. Signatures are verified before, by the caller. Payload
fields are `msgspec.Raw`, the bytes as they came; a Raw is a view that keeps the whole message in memory, so
copy what stays (`Raw.copy()`).
"""

from collections.abc import Sequence
from typing import Final, TypeAlias
from urllib.parse import urlsplit

import msgspec
from msgspec import Raw, Struct

from protocol import limits, names
from protocol.calls import (
    Ended,
    Event,
    Invocation,
    Invoke,
    Invoked,
    Kind,
    ManifestQuestion,
    MemoEntry,
    OpenWait,
    Retry,
    Started,
)
from protocol.decode import decode, require_type
from protocol.manifest import (
    Batch,
    Capabilities,
    Concurrency,
    FunctionConfig,
    Manifest,
    Sdk,
    Trigger,
    Workspace,
    check_manifest,
    check_workspace,
)
from protocol.ops import (
    Abandon,
    Backoff,
    Complete,
    ErrorWords,
    EventIn,
    Fail,
    Op,
    SendEvents,
    Sleep,
    Step,
    StepError,
    UnknownFunction,
    WaitForEvent,
    Yield,
    are_plain_steps,
    check_count,
    check_error,
    check_event,
    check_instant,
    check_ops,
    check_size,
    is_plain_event,
    require,
)
from protocol.read_part_by_part import LooseCheckpoint, LooseInvoked, read_part_by_part, refuse_part
from protocol.refused import MessageRefused
from protocol.requests import (
    Alive,
    AliveAnswer,
    AliveRun,
    AliveRunAnswer,
    Checkpoint,
    CheckpointAnswer,
    CheckpointEntry,
    EntryAnswer,
    EventAnswer,
    Events,
    EventsAnswer,
    Refusal,
    RefusedEntry,
    Result,
    ResultAnswer,
    RunStatus,
    Start,
    StartAnswer,
    StartedRun,
    Sync,
    SyncAnswer,
    Value,
    Values,
    ValuesAnswer,
)
from protocol.strict_json import JsonRefused

__all__ = [
    "Abandon", "Alive", "AliveAnswer", "AliveRun", "AliveRunAnswer", "Backoff", "Batch", "Capabilities",
    "Checkpoint", "CheckpointAnswer", "CheckpointEntry", "Complete", "Concurrency", "Ended", "EntryAnswer",
    "ErrorWords", "Event", "EventAnswer", "EventIn", "Events", "EventsAnswer", "Fail", "FunctionConfig",
    "Invocation", "Invoke", "Invoked", "JsonRefused", "Kind", "Manifest", "ManifestQuestion", "MemoEntry",
    "MessageRefused", "Op", "OpenWait", "Refusal", "RefusedEntry", "Result", "ResultAnswer", "Retry",
    "RunStatus", "Sdk", "SendEvents", "Sleep", "Start", "StartAnswer", "Started", "StartedRun", "Step",
    "StepError", "Sync", "SyncAnswer", "Trigger", "UnknownFunction", "Value", "Values", "ValuesAnswer",
    "WaitForEvent", "Workspace", "Yield", "decode_alive", "decode_alive_answer", "decode_call",
    "decode_checkpoint", "decode_checkpoint_answer", "decode_error", "decode_events", "decode_events_answer",
    "decode_invoked", "decode_line", "decode_manifest", "decode_refusal", "decode_result",
    "decode_result_answer", "decode_start", "decode_start_answer", "decode_sync", "decode_sync_answer",
    "decode_values", "decode_values_answer", "encode",
]  # fmt: skip


# One union per direction: a tagged union makes `type` required, and a wrong `type` says what came instead.
_CALLS: Final[msgspec.json.Decoder[Invoke | ManifestQuestion]] = msgspec.json.Decoder(Invoke | ManifestQuestion)
_REPLIES: Final[msgspec.json.Decoder[Manifest | Invoked]] = msgspec.json.Decoder(Manifest | Invoked)
_LINES: Final[msgspec.json.Decoder[Started | Ended]] = msgspec.json.Decoder(Started | Ended)
_Request: TypeAlias = Checkpoint | Alive | Values | Events | Start | Result | Sync
_Answer: TypeAlias = CheckpointAnswer | AliveAnswer | ValuesAnswer | EventsAnswer | StartAnswer | ResultAnswer | SyncAnswer
_REQUESTS: Final[msgspec.json.Decoder[_Request]] = msgspec.json.Decoder(_Request)
_ANSWERS: Final[msgspec.json.Decoder[_Answer]] = msgspec.json.Decoder(_Answer)
_REFUSALS: Final = msgspec.json.Decoder(Refusal)
_CHECKPOINT_ENTRIES: Final = msgspec.json.Decoder(CheckpointEntry)
_ENCODER: Final = msgspec.json.Encoder()


def encode(message: Struct) -> bytes:
    """The bytes of a message, compact, payloads as they were given."""
    return _ENCODER.encode(message)


# Engine to app.


def decode_call(raw: bytes) -> Invoke | ManifestQuestion:
    """What the engine asks at the serve URL."""
    message = decode(raw, _CALLS)
    check_workspace(message.workspace, "/workspace", star_allowed=isinstance(message, ManifestQuestion))
    if isinstance(message, Invoke):
        check_count(len(message.invocations), 1, limits.ENTRIES_PER_MESSAGE_MAX, "invocations", "/invocations")
        for index, invocation in enumerate(message.invocations):
            _check_invocation(invocation, f"/invocations/{index}")
    return message


# The app's reply.


def decode_manifest(raw: bytes) -> Manifest:
    """The reply to the manifest question."""
    manifest = require_type(decode(raw, _REPLIES), Manifest, "manifest")
    check_manifest(manifest)
    return manifest


def decode_line(raw: bytes) -> Started | Ended | RefusedEntry:
    """One line of a streamed reply to invoke, its signature taken off."""
    try:
        line = decode(raw, _LINES)
        _check_line(line, "")
        return line
    except MessageRefused as refused:
        return refuse_part(raw, refused, "")


def decode_invoked(raw: bytes) -> tuple[list[Ended], list[RefusedEntry]]:
    """The plain reply to invoke: the lines that are good, and those that name their run but break a rule."""
    try:
        invoked = require_type(decode(raw, _REPLIES), Invoked, "invoked")
        for index, line in enumerate(invoked.results):
            _check_line(line, f"/results/{index}")
        return invoked.results, []
    except MessageRefused as refused:
        _, lines, refused_lines = read_part_by_part(raw, refused, LooseInvoked, "results", _ended_part)
        return lines, refused_lines


# App to engine.


def decode_checkpoint(raw: bytes) -> tuple[Checkpoint, list[RefusedEntry]]:
    """The checkpoint with its good entries, and the entries that name their run but break a rule.

    One run's bad op must not fail the other runs of the message. Raises when the message itself, or an
    entry that does not even name its run, is bad.
    """
    refused_entries: list[RefusedEntry] = []
    try:
        message = require_type(decode(raw, _REQUESTS), Checkpoint, "checkpoint")
        for index, entry in enumerate(message.entries):
            _check_entry(entry, index)
    except MessageRefused as refused:
        loose, entries, refused_entries = read_part_by_part(raw, refused, LooseCheckpoint, "entries", _entry_part)
        message = Checkpoint(loose.workspace, entries)
    check_workspace(message.workspace, "/workspace")
    check_count(len(message.entries) + len(refused_entries), 1, limits.ENTRIES_PER_MESSAGE_MAX, "entries", "/entries")
    # With refused entries the index counts them behind the good ones; the run id in the words is exact.
    _check_one_entry_a_run([*message.entries, *refused_entries], "entries")
    return message, refused_entries


def decode_alive(raw: bytes) -> Alive:
    message = require_type(decode(raw, _REQUESTS), Alive, "alive")
    check_workspace(message.workspace, "/workspace")
    require(names.process_problem(message.process), "/process")
    check_count(len(message.runs), 0, limits.ALIVE_RUNS_MAX, "runs", "/runs")
    for index, run in enumerate(message.runs):
        require(names.run_problem(run.run_id), f"/runs/{index}/run_id")
    _check_one_entry_a_run(message.runs, "runs")
    return message


def decode_values(raw: bytes) -> Values:
    message = require_type(decode(raw, _REQUESTS), Values, "values")
    check_workspace(message.workspace, "/workspace")
    require(names.run_problem(message.run_id), "/run_id")
    if bool(message.store) == bool(message.fetch):
        raise MessageRefused("bad_field", "A message about values has either `store` or `fetch`.", "")
    check_count(
        len(message.store or message.fetch), 1, limits.REFS_PER_MESSAGE_MAX, "values", "/store" if message.store else "/fetch"
    )
    for index, value in enumerate(message.store):
        check_size(value, limits.STEP_RESULT_BYTES_MAX, "value", f"/store/{index}")
    for index, ref in enumerate(message.fetch):
        require(names.ref_problem(ref), f"/fetch/{index}")
    return message


def decode_events(raw: bytes) -> Events:
    message = require_type(decode(raw, _REQUESTS), Events, "events")
    check_workspace(message.workspace, "/workspace")
    check_count(len(message.events), 1, limits.EVENTS_PER_MESSAGE_MAX, "events", "/events")
    for index, event in enumerate(message.events):
        if not is_plain_event(event):
            check_event(event, f"/events/{index}")
    return message


def decode_start(raw: bytes) -> Start:
    message = require_type(decode(raw, _REQUESTS), Start, "start")
    check_workspace(message.workspace, "/workspace")
    require(names.function_problem(message.function), "/function")
    check_size(message.input, limits.EVENT_BYTES_MAX, "input", "/input")
    if isinstance(message.id, str):
        require(names.event_id_problem(message.id), "/id")
    return message


def decode_result(raw: bytes) -> Result:
    message = require_type(decode(raw, _REQUESTS), Result, "result")
    check_workspace(message.workspace, "/workspace")
    require(names.run_problem(message.run_id), "/run_id")
    return message


def decode_sync(raw: bytes) -> Sync:
    message = require_type(decode(raw, _REQUESTS), Sync, "sync")
    check_workspace(message.workspace, "/workspace")
    check_manifest(message.manifest, "/manifest")
    if message.manifest.workspace != message.workspace:
        raise MessageRefused("bad_field", "The manifest names another workspace than the message.", "/manifest/workspace")
    _check_url(message.url)
    return message


# The engine's answers.


def decode_checkpoint_answer(raw: bytes) -> CheckpointAnswer:
    return require_type(decode(raw, _ANSWERS), CheckpointAnswer, "checkpoint")


def decode_alive_answer(raw: bytes) -> AliveAnswer:
    return require_type(decode(raw, _ANSWERS), AliveAnswer, "alive")


def decode_values_answer(raw: bytes) -> ValuesAnswer:
    return require_type(decode(raw, _ANSWERS), ValuesAnswer, "values")


def decode_events_answer(raw: bytes) -> EventsAnswer:
    return require_type(decode(raw, _ANSWERS), EventsAnswer, "events")


def decode_start_answer(raw: bytes) -> StartAnswer:
    return require_type(decode(raw, _ANSWERS), StartAnswer, "start")


def decode_result_answer(raw: bytes) -> ResultAnswer:
    return require_type(decode(raw, _ANSWERS), ResultAnswer, "result")


def decode_sync_answer(raw: bytes) -> SyncAnswer:
    return require_type(decode(raw, _ANSWERS), SyncAnswer, "sync")


def decode_refusal(raw: bytes) -> Refusal:
    """The body of a 4xx or 5xx, from either side."""
    return decode(raw, _REFUSALS)


def decode_error(error: Raw) -> ErrorWords:
    """The name, message, stack and code inside of an `error` payload that a decoder here has let through."""
    return check_error(error, "")


def _check_invocation(invocation: Invocation, place: str) -> None:
    require(names.run_problem(invocation.run_id), f"{place}/run_id")
    require(names.function_problem(invocation.function), f"{place}/function")
    check_instant(invocation.event.received_at, f"{place}/event/received_at")


def _check_line(line: Started | Ended, place: str) -> None:
    require(names.run_problem(line.run_id), f"{place}/run_id")
    if isinstance(line, Ended):
        check_ops(line.ops, place=f"{place}/ops", ends=True, in_reply=True)


def _check_entry(entry: CheckpointEntry, index: int | None) -> None:
    """`index` is the entry's place in its message; None when it is looked at alone."""
    problem = names.run_problem(entry.run_id)
    if problem is not None or not are_plain_steps(entry.ops):
        place = "" if index is None else f"/entries/{index}"
        require(problem, f"{place}/run_id")
        check_ops(entry.ops, place=f"{place}/ops", ends=entry.ends, in_reply=False)


def _check_one_entry_a_run(entries: Sequence[CheckpointEntry | RefusedEntry | AliveRun], what: str) -> None:
    seen: set[str] = set()
    for index, entry in enumerate(entries):
        if entry.run_id in seen:
            raise MessageRefused(
                "duplicate_run",
                f"Two {what} are for the run {entry.run_id}; send one a run.",
                f"/{what}/{index}",
            )
        seen.add(entry.run_id)


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and "@" not in parts.netloc and parts.port != 0
    except ValueError:
        is_good = False
    if not is_good or len(url) > 2_000 or not url.isascii() or not url.isprintable() or " " in url or parts.fragment:
        raise MessageRefused(
            "bad_field",
            f"The serve URL {names.shown(url)} must be http(s)://host[:port]/path, without user or `#`.",
            "/url",
        )


def _entry_part(raw: bytes) -> CheckpointEntry:
    entry = decode(raw, _CHECKPOINT_ENTRIES)
    _check_entry(entry, None)
    return entry


def _ended_part(raw: bytes) -> Ended:
    line = require_type(decode(raw, _LINES), Ended, "ended")
    _check_line(line, "")
    return line
