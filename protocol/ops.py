"""What an invocation reports: one struct per op of SPEC section 5, and the rules that a type alone can not
say.

Payloads are `msgspec.Raw`: the bytes as they came. A Raw is a view that keeps the whole message in memory;
copy what stays.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final, TypeAlias

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from protocol import limits, names
from protocol.refused import MessageRefused

Count: TypeAlias = Annotated[int, Meta(ge=0, le=limits.COUNT_MAX)]
Attempt: TypeAlias = Annotated[int, Meta(ge=1, le=limits.COUNT_MAX)]
Seconds: TypeAlias = Annotated[float, Meta(ge=0, le=limits.LENGTH_SECONDS_MAX)]
RetryAfter: TypeAlias = Annotated[float, Meta(ge=limits.RETRY_AFTER_SECONDS_MIN, le=limits.RETRY_AFTER_SECONDS_MAX)]
Retries: TypeAlias = Annotated[int, Meta(ge=0, le=limits.RETRIES_MAX)]
MatchValue: TypeAlias = str | int | float | bool | None


class Backoff(Struct, frozen=True, omit_defaults=True):
    """How long to wait before the next try: initial × factor per try, at most max_seconds, full jitter or
    none.
    """

    initial_seconds: Seconds = 1.0
    factor: Annotated[float, Meta(ge=1, le=1_000)] = 2.0
    max_seconds: Seconds = 3600.0
    jitter: bool = True


class EventIn(Struct, frozen=True, omit_defaults=True):
    """An event as an app sends it. `id` deduplicates for 24 hours."""

    name: str
    data: Raw = Raw(b"null")
    id: str | UnsetType = UNSET


class Step(Struct, frozen=True, omit_defaults=True, tag_field="op", tag="step"):
    """Exactly one of `data` and `ref`, the reference of a value that was stored before."""

    id: str
    attempt: Attempt
    started_at: datetime
    duration_seconds: Seconds
    seen: Count
    data: Raw | UnsetType = UNSET
    ref: str | UnsetType = UNSET


class StepError(Struct, frozen=True, omit_defaults=True, tag_field="op", tag="step_error"):
    id: str
    error: Raw
    retriable: bool
    attempt: Attempt
    started_at: datetime
    duration_seconds: Seconds
    seen: Count
    retry_after_seconds: RetryAfter | None = None
    retries: Retries | None = None
    backoff: Backoff | None = None


class Sleep(Struct, frozen=True, omit_defaults=True, tag_field="op", tag="sleep"):
    """Exactly one of `seconds` and `until`."""

    id: str
    seconds: Seconds | None = None
    until: datetime | None = None


class WaitForEvent(Struct, frozen=True, omit_defaults=True, tag_field="op", tag="wait_for_event", rename={"if_": "if"}):
    id: str
    event: str
    timeout_seconds: Seconds
    match: dict[str, MatchValue] | None = None
    if_: str | None = None
    lookback: bool = True


class SendEvents(Struct, frozen=True, omit_defaults=True, tag_field="op", tag="send_events"):
    id: str
    events: list[EventIn]


class Abandon(Struct, frozen=True, tag_field="op", tag="abandon"):
    ids: list[str]


class Complete(Struct, frozen=True, tag_field="op", tag="complete"):
    output: Raw


class Fail(Struct, frozen=True, omit_defaults=True, tag_field="op", tag="fail"):
    error: Raw
    retriable: bool
    retry_after_seconds: RetryAfter | None = None


class Yield(Struct, frozen=True, tag_field="op", tag="yield"):
    pass


class UnknownFunction(Struct, frozen=True, tag_field="op", tag="unknown_function"):
    pass


Op: TypeAlias = Step | StepError | Sleep | WaitForEvent | SendEvents | Abandon | Complete | Fail | Yield | UnknownFunction

# The ops after which an invocation has nothing more to say.
ENDING_OPS: Final = (Complete, Fail, Yield, UnknownFunction)


class ErrorWords(Struct, frozen=True, omit_defaults=True):
    """What is inside of an `error` payload."""

    name: str
    message: str
    stack: str | None = None
    code: str | None = None


_ERROR_DECODER = msgspec.json.Decoder(ErrorWords)


def check_ops(ops: Sequence[Op], *, place: str, ends: bool, in_reply: bool) -> None:
    """Refuse the whole list, naming the index, if one op breaks a rule of SPEC section 5.

    `ends` says that the message ends the invocation, `in_reply` that it is an `ended` line rather than a
    checkpoint.
    """
    for index, op in enumerate(ops):
        here = f"{place}/{index}"
        if isinstance(op, ENDING_OPS):
            _check_ending(op, here, is_last=index == len(ops) - 1, is_first=index == 0, ends=ends, in_reply=in_reply)
        _check_op(op, here)


def are_plain_steps(ops: Sequence[Op]) -> bool:
    """Whether these are steps that break no rule, at a glance: nearly all ops are. False means: look closely."""
    for op in ops:
        if not (
            type(op) is Step
            and 0 < len(op.id) <= names.TEXT_CHARACTERS_MAX
            and op.id.isprintable()
            and "#" not in op.id
            and op.started_at.tzinfo is UTC
            and op.ref is UNSET
            and op.data is not UNSET
            and memoryview(op.data).nbytes <= limits.STEP_RESULT_BYTES_MAX
        ):
            return False
    return True


def check_event(event: EventIn, place: str) -> None:
    """Refuse an event that an app may not send."""
    require(names.event_name_problem(event.name), f"{place}/name")
    if names.is_reserved_event(event.name):
        raise MessageRefused(
            "reserved_name",
            f"The event name {names.shown(event.name)} begins with `durable.`, which only the engine sends. Choose another.",
            f"{place}/name",
        )
    if isinstance(event.id, str):
        require(names.event_id_problem(event.id), f"{place}/id")
    check_size(event.data, limits.EVENT_BYTES_MAX, "event data", f"{place}/data")


def is_plain_event(event: EventIn) -> bool:
    """Whether this event breaks no rule, at a glance. False means: look closely."""
    return (
        0 < len(event.name) <= names.TEXT_CHARACTERS_MAX
        and event.name.isprintable()
        and not names.is_reserved_event(event.name)
        and (event.id is UNSET or (0 < len(event.id) <= names.EVENT_ID_CHARACTERS_MAX and event.id.isprintable()))
        and memoryview(event.data).nbytes <= limits.EVENT_BYTES_MAX
    )


def check_error(error: Raw, place: str) -> ErrorWords:
    """The words of an `error` payload; refused when it is no error or too large."""
    check_size(error, limits.ERROR_BYTES_MAX, "error", place)
    try:
        return _ERROR_DECODER.decode(error)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as fault:
        raise MessageRefused(
            "bad_field",
            f"An error is an object with the texts `name` and `message` (and `stack`, `code`): {fault}.",
            place,
        ) from None


def check_size(payload: Raw, bytes_max: int, what: str, place: str) -> None:
    """Refuse a payload over its limit."""
    size_bytes = memoryview(payload).nbytes
    if size_bytes > bytes_max:
        raise MessageRefused(
            "too_large",
            f"The {what} at `{place}` has {size_bytes} bytes; {bytes_max} are allowed. Store it elsewhere and pass a reference.",
            place,
        )


def check_count(count: int, least: int, most: int, what: str, place: str) -> None:
    """Refuse a list that is too short or too long."""
    if not least <= count <= most:
        raise MessageRefused(
            "too_many" if count > most else "too_few",
            f"There are {count} {what}; {least}–{most} are allowed.",
            place,
        )


def check_instant(instant: datetime, place: str) -> None:
    """Refuse an instant that is not in UTC."""
    if instant.utcoffset() != timedelta(0):
        raise MessageRefused("bad_field", f"The instant at `{place}` must be in UTC, ending in `Z`.", place)


def require(problem: str | None, place: str) -> None:
    """Refuse a name that has a problem."""
    if problem is not None:
        raise MessageRefused("bad_name", problem, place)


def _check_ending(op: Op, place: str, *, is_last: bool, is_first: bool, ends: bool, in_reply: bool) -> None:
    word = _op_word(op)
    if isinstance(op, UnknownFunction) and not in_reply:
        raise MessageRefused(
            "misplaced_op",
            "`unknown_function` belongs in the reply to an invoke, not in a checkpoint.",
            place,
        )
    if not ends:
        raise MessageRefused(
            "misplaced_op",
            f"`{word}` ends the invocation, so its checkpoint entry needs `ends: true`.",
            place,
        )
    if not is_last:
        raise MessageRefused("misplaced_op", f"`{word}` ends the invocation, so it must be the last op.", place)
    if isinstance(op, UnknownFunction) and not is_first:
        raise MessageRefused("misplaced_op", "`unknown_function` stands alone: an app without the function ran nothing.", place)


def _check_op(op: Op, place: str) -> None:
    match op:
        case Step():
            _check_id(op.id, place)
            check_instant(op.started_at, f"{place}/started_at")
            _check_step_value(op, place)
        case StepError():
            _check_id(op.id, place)
            check_instant(op.started_at, f"{place}/started_at")
            check_error(op.error, f"{place}/error")
        case Sleep():
            _check_id(op.id, place)
            if (op.seconds is None) == (op.until is None):
                raise MessageRefused("bad_field", "A sleep has either `seconds` or `until`.", place)
            if op.until is not None:
                check_instant(op.until, f"{place}/until")
        case WaitForEvent():
            _check_id(op.id, place)
            require(names.event_name_problem(op.event), f"{place}/event")
            if op.match is not None:
                _check_match(op.match, f"{place}/match")
        case SendEvents():
            _check_id(op.id, place)
            check_count(len(op.events), 1, limits.EVENTS_PER_MESSAGE_MAX, "events", f"{place}/events")
            for index, event in enumerate(op.events):
                check_event(event, f"{place}/events/{index}")
        case Abandon():
            check_count(len(op.ids), 1, limits.MEMO_ENTRIES_MAX, "ids", f"{place}/ids")
            for index, step_id in enumerate(op.ids):
                require(names.wire_step_id_problem(step_id), f"{place}/ids/{index}")
        case Complete():
            check_size(op.output, limits.STEP_RESULT_BYTES_MAX, "output", f"{place}/output")
        case Fail():
            check_error(op.error, f"{place}/error")
        case Yield() | UnknownFunction():
            pass


def _check_step_value(op: Step, place: str) -> None:
    if op.data is UNSET and op.ref is UNSET:
        raise MessageRefused("missing_field", "The step lacks the field `data` (or `ref`).", place)
    if op.data is not UNSET and op.ref is not UNSET:
        raise MessageRefused("bad_field", "A step has either `data` or `ref`.", place)
    if op.data is not UNSET:
        check_size(op.data, limits.STEP_RESULT_BYTES_MAX, "step result", f"{place}/data")
    elif op.ref is not UNSET:
        require(names.ref_problem(op.ref), f"{place}/ref")


def _check_id(step_id: str, place: str) -> None:
    require(names.wire_step_id_problem(step_id), f"{place}/id")


def _check_match(match: dict[str, MatchValue], place: str) -> None:
    check_count(len(match), 1, limits.MATCH_PATHS_MAX, "paths", place)
    for path in match:
        if not all(path.split(".")):
            raise MessageRefused(
                "bad_field",
                f"The path {names.shown(path)} of `match` must be names with dots between, such as `order.id`.",
                place,
            )


def _op_word(op: Op) -> str:
    return str(op.__struct_config__.tag)
