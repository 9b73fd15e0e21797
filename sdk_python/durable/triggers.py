"""What users write beside a function: what starts it (`Event`), how many at once (`Concurrency`), how it is retried
(`Backoff`). Checked where they are written, so that a mistake shows at import and not at the engine.
"""

import math
import unicodedata
from dataclasses import dataclass

from durable.wire import Backoff, WireConcurrency, WireTrigger

EVENT_NAME_CHARACTERS_MAX = 256
_COUNT_MAX = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Event:
    """Starts a run for each event of this name; with `if_`, a CEL expression over `event`, only when it is true.

    durable.Event("order.paid", if_="event.data.amount > 100")
    """

    name: str
    if_: str | None = None

    def __post_init__(self) -> None:
        check_event_name(self.name)
        _check_expression(self.if_, "`if_` of the trigger", 'if_="event.data.amount > 100"')

    def to_wire(self) -> WireTrigger:
        return WireTrigger(event=self.name, if_=self.if_)


@dataclass(frozen=True, slots=True)
class Concurrency:
    """At most `limit` runs of the function are executed at once; with `key`, a CEL expression, per value of the key.

    durable.Concurrency(limit=2, key="tenantId")
    """

    limit: int
    key: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.limit, bool) or not isinstance(self.limit, int) or not 1 <= self.limit <= _COUNT_MAX:
            raise ValueError(f"The limit of a Concurrency is a whole number from 1 up, not {self.limit!r}.")
        _check_expression(self.key, "`key` of the Concurrency", 'key="tenantId"')

    def to_wire(self) -> WireConcurrency:
        return WireConcurrency(limit=self.limit, key=self.key)


def check_backoff(backoff: object) -> Backoff:
    """The backoff, if it is one that the engine takes."""
    if not isinstance(backoff, Backoff):
        raise TypeError(f"`backoff` is a durable.Backoff(initial_seconds=1, factor=2, max_seconds=3600), not {backoff!r:.80}.")
    for name, least, most in (("initial_seconds", 0, 3_153_600_000), ("factor", 1, 1_000), ("max_seconds", 0, 3_153_600_000)):
        number = getattr(backoff, name)
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            raise TypeError(f"`{name}` of the Backoff is a number, not {number!r:.80}.")
        if not least <= number <= most:
            raise ValueError(f"`{name}` of the Backoff is {number}; {least} to {most} are allowed.")
    if not isinstance(backoff.jitter, bool):
        raise TypeError(f"`jitter` of the Backoff is True or False, not {backoff.jitter!r:.80}.")
    return backoff


def check_event_name(name: object) -> str:
    """The name, if an event can have it."""
    if not isinstance(name, str):
        raise TypeError(f'The name of an event is a text such as "user.created", not {name!r:.80}.')
    if not 1 <= len(name) <= EVENT_NAME_CHARACTERS_MAX or has_control(name):
        raise ValueError(
            f"The event name {name[:80]!r} must have 1–{EVENT_NAME_CHARACTERS_MAX} characters, none of them a control character."
        )
    return name


def has_control(text: str) -> bool:
    """Whether a control character (or half a surrogate pair, which can not travel) is in the text."""
    return not text.isprintable() and any(unicodedata.category(character) in ("Cc", "Cs") for character in text)


def _check_expression(expression: object, what: str, example: str) -> None:
    if expression is None or (isinstance(expression, str) and expression.strip()):
        return
    raise ValueError(f"{what} is a CEL expression in a text, such as {example}, not {expression!r:.80}.")
