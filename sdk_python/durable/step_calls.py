"""Turns what a handler says to a step tool into what the execution opens: the same for async and sync handlers.

Owns the words of users: reads durations, instants and options, and refuses misuse with a sentence that says how to
mend it. Each function gives a callable that opens the step, to be called on the runtime's loop.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from msgspec import UNSET, Raw

from durable.durations import Duration, parse_duration
from durable.errors import StepUsageError
from durable.event import Event
from durable.function import RETRIES_MAX, is_async_callable
from durable.json_text import encode_result
from durable.open_step import new_body
from durable.triggers import check_backoff
from durable.wire import Backoff, EventIn, MatchValue, Op, SendEventsOp, SleepOp, WaitForEventOp

if TYPE_CHECKING:
    from durable.executor import Execution
    from durable.open_step import OpenStep

OpenCall: TypeAlias = "Callable[[], OpenStep]"

MATCH_PATHS_MAX: Final = 8


def open_run(
    execution: "Execution",
    step_id: str,
    body: Any,
    arguments: tuple[Any, ...],
    options: dict[str, Any],
    *,
    retries: int | None,
    backoff: Backoff | None,
    timeout: Duration | None,
) -> OpenCall:
    """`step.run`. The body is called with its arguments when its turn has come."""
    if not callable(body):
        hint = " Give the function itself and its arguments: step.run(id, fetch, 7), not step.run(id, fetch(7))."
        raise StepUsageError(
            f"The body of step {step_id!r} is a {type(body).__name__}, not a function."
            + (hint if inspect.isawaitable(body) else "")
        )
    if retries is not None and (isinstance(retries, bool) or not isinstance(retries, int) or not 0 <= retries <= RETRIES_MAX):
        raise StepUsageError(f"retries of step {step_id!r} is {retries!r}; it is a whole number from 0 to {RETRIES_MAX}.")
    timeout_seconds = _step_timeout(execution, step_id, timeout)
    if backoff is not None:
        check_backoff(backoff)
    plan = new_body(
        functools.partial(body, *arguments, **options),
        is_async=is_async_callable(body),
        retries=retries,
        backoff=backoff,
        timeout_seconds=timeout_seconds,
    )
    return functools.partial(execution.open_step, "step", step_id, read=_as_it_is, body=plan)


def open_sleep(execution: "Execution", step_id: str, duration: Duration) -> OpenCall:
    """`step.sleep`."""
    seconds = _seconds(duration, f"the duration of sleep {step_id!r}")

    def make_op(wire_id: str) -> Op:
        return SleepOp(id=wire_id, seconds=seconds)

    return functools.partial(execution.open_step, "sleep", step_id, read=_as_it_is, make_op=make_op, wait_seconds=seconds)


def open_sleep_until(execution: "Execution", step_id: str, instant: datetime | str) -> OpenCall:
    """`step.sleep_until`."""
    until = _instant(step_id, instant)

    def make_op(wire_id: str) -> Op:
        return SleepOp(id=wire_id, until=until)

    seconds = (until - datetime.now(UTC)).total_seconds()
    return functools.partial(execution.open_step, "sleep", step_id, read=_as_it_is, make_op=make_op, wait_seconds=seconds)


def open_wait_for_event(
    execution: "Execution",
    step_id: str,
    event: str,
    match: Mapping[str, MatchValue] | None,
    if_: str | None,
    timeout: Duration,
) -> OpenCall:
    """`step.wait_for_event`."""
    seconds = _seconds(timeout, f"timeout of wait {step_id!r}")
    if match is not None and not 1 <= len(match) <= MATCH_PATHS_MAX:
        raise StepUsageError(f"match of wait {step_id!r} has {len(match)} paths; 1 to {MATCH_PATHS_MAX} are allowed.")
    wire_match = None if match is None else dict(match)

    def make_op(wire_id: str) -> Op:
        return WaitForEventOp(id=wire_id, event=event, timeout_seconds=seconds, match=wire_match, if_=if_)

    return functools.partial(
        execution.open_step, "wait_for_event", step_id, read=_as_event, make_op=make_op, wait_seconds=seconds
    )


def open_send_event(execution: "Execution", step_id: str, events: Any) -> OpenCall:
    """`step.send_event`."""
    given = list(events) if isinstance(events, Sequence) and not isinstance(events, str) else [events]
    if not given:
        raise StepUsageError(f"Step {step_id!r} sends no events. Give one event or a list of at least one.")
    wire_events = [_event_in(step_id, index, event) for index, event in enumerate(given)]

    def make_op(wire_id: str) -> Op:
        return SendEventsOp(id=wire_id, events=wire_events)

    return functools.partial(execution.open_step, "send_events", step_id, read=_as_ids, make_op=make_op)


def _step_timeout(execution: "Execution", step_id: str, timeout: Duration | None) -> float:
    most_seconds = execution.function.step_timeout_seconds
    if timeout is None:
        return most_seconds
    seconds = _seconds(timeout, f"timeout of step {step_id!r}")
    if not 0 < seconds <= most_seconds:
        raise StepUsageError(
            f"timeout of step {step_id!r} is {seconds:g} s; it must be above 0 and at most the step_timeout of the function "
            f"{execution.function.id!r}, {most_seconds:g} s, up to which the engine holds the lease. Give the function a "
            "larger step_timeout."
        )
    return seconds


def _seconds(duration: Duration, what: str) -> float:
    try:
        return parse_duration(duration)
    except (ValueError, TypeError) as error:
        raise StepUsageError(f"{what[0].upper()}{what[1:]}: {error}") from None


def _instant(step_id: str, instant: datetime | str) -> datetime:
    if isinstance(instant, str):
        try:
            instant = datetime.fromisoformat(instant)
        except ValueError:
            raise StepUsageError(
                f"The instant of sleep {step_id!r} is {instant!r}; write it like 2026-01-31T09:00:00Z."
            ) from None
    if instant.utcoffset() is None:
        raise StepUsageError(
            f"The instant of sleep {step_id!r} has no time zone, so it is a different moment on every host. "
            "Use datetime.now(UTC) + …, or add tzinfo."
        )
    return instant.astimezone(UTC)


def _event_in(step_id: str, index: int, event: Any) -> EventIn:
    if isinstance(event, Mapping):
        unknown = set(event) - {"name", "data", "id"}
        name, data, event_id = event.get("name"), event.get("data"), event.get("id")
    else:
        unknown = set()
        name, data, event_id = getattr(event, "name", None), getattr(event, "data", None), getattr(event, "id", None)
    if not isinstance(name, str) or unknown:
        raise StepUsageError(
            f"Event {index} of step {step_id!r} is {event!r:.200}; an event is "
            '{"name": "user.created", "data": {…}} and may have an "id".'
        )
    raw = Raw(encode_result(data, where=f"the data of event {index} of step {step_id!r}"))
    return EventIn(name=name, data=raw, id=UNSET if event_id is None else event_id)


def _as_it_is(value: Any) -> Any:
    return value


def _as_event(value: Any) -> Event | None:
    if value is None:
        return None
    received_at = value.get("received_at")
    return Event(
        id=value.get("id", ""),
        name=value.get("name", ""),
        data=value.get("data"),
        received_at=datetime.fromisoformat(received_at) if received_at else datetime.now(UTC),
    )


def _as_ids(value: Any) -> list[str]:
    return list(value["ids"])
