"""The messages that user code sends to the engine: events, starts, results, as bytes. Checked here, where the line at
fault is still on the stack, and not by the engine.
"""

import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

from msgspec import Raw

from durable.function import Function, check_function_id
from durable.json_text import encode_result
from durable.triggers import check_event_name, has_control
from durable.wire import (
    EVENT_BYTES_MAX,
    EVENTS_PER_MESSAGE_MAX,
    EventIn,
    Events,
    Manifest,
    Start,
    Sync,
    Workspace,
)
from durable.wire_codec import encode

EventWords: TypeAlias = Mapping[str, Any]
RESERVED_PREFIX: Final = "durable."
ID_CHARACTERS_MAX: Final = 128
_KEYS: Final = frozenset({"name", "data", "id"})


def events_message(workspace: Workspace, events: Sequence[EventWords]) -> bytes:
    """The body of /v1/events for events `{"name": …, "data": …, "id"?: …}`.

    An event without an id gets one here, so that a repeated try of this message can not be a second event.
    """
    if isinstance(events, Mapping | str) or not isinstance(events, Sequence):
        raise TypeError(f'Events are a list of {{"name": …, "data": …}}, not {events!r:.80}.')
    if not 1 <= len(events) <= EVENTS_PER_MESSAGE_MAX:
        raise ValueError(f"There are {len(events)} events; 1–{EVENTS_PER_MESSAGE_MAX} can be sent at once.")
    where = [f"event {index}" if len(events) > 1 else "the event" for index in range(len(events))]
    return encode(Events(workspace, [_event_in(event, place) for event, place in zip(events, where, strict=True)]))


def start_message(workspace: Workspace, function: Function | str, input: object, start_id: str | None) -> tuple[str, bytes]:
    """The id of the function and the body of /v1/start. A missing id is made, for the same reason as above."""
    function_id = function.id if isinstance(function, Function) else check_function_id(function)
    data = Raw(encode_result(input, where=f"the input of {function_id!r}", bytes_max=EVENT_BYTES_MAX))
    checked_id = str(uuid.uuid4()) if start_id is None else check_id(start_id, "the start")
    return function_id, encode(Start(workspace, function_id, data, checked_id))


def sync_message(workspace: Workspace, url: str, manifest: Manifest) -> bytes:
    """The body of /v1/sync."""
    if not isinstance(url, str) or not url.startswith(("http://", "https://")):
        raise ValueError(f"The serve URL is where the engine reaches this app, http(s)://host/path, not {url!r:.200}.")
    return encode(Sync(workspace, url, manifest))


def check_id(event_id: object, where: str) -> str:
    """The id, if it is one that deduplicates."""
    if isinstance(event_id, str) and 1 <= len(event_id) <= ID_CHARACTERS_MAX and not has_control(event_id):
        return event_id
    raise ValueError(
        f"The id of {where} is a text of 1–{ID_CHARACTERS_MAX} characters without control characters, not {event_id!r:.160}."
    )


def _event_in(event: EventWords, where: str) -> EventIn:
    if not isinstance(event, Mapping):
        raise TypeError(f'{where[0].upper()}{where[1:]} is {{"name": …, "data": …, "id"?: …}}, not {event!r:.80}.')
    if not set(event) <= _KEYS or "name" not in event:
        raise ValueError(f"{where[0].upper()}{where[1:]} has the keys {sorted(map(str, event))}; name, data and id are known.")
    name = check_event_name(event["name"])
    if name.startswith(RESERVED_PREFIX):
        raise ValueError(f"The name of {where}, {name!r}, begins with `durable.`, which only the engine sends.")
    data = Raw(encode_result(event.get("data"), where=f"the data of {where} {name!r}", bytes_max=EVENT_BYTES_MAX))
    event_id = event.get("id")
    return EventIn(name, data, str(uuid.uuid4()) if event_id is None else check_id(event_id, f"{where} {name!r}"))
