"""The event that a handler receives: immutable, its data decoded."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias


@dataclass(frozen=True, slots=True)
class ReceivedEvent:
    """What the run was started by. `data` is the decoded JSON (None, bool, int, float, str, list, dict);
    `received_at` is when the engine took it, aware and in UTC.

    Do not change `data`: the handler runs again from its top, and then sees the event as it was.
    """

    id: str
    name: str
    data: Any
    received_at: datetime


Event: TypeAlias = ReceivedEvent
