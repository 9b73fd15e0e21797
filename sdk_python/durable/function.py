"""A durable function: a handler with an id, and what the engine must know about it.

Made by `App.function`. Owns the checks of its options; runs nothing.
"""

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final

from durable.durations import Duration, parse_duration
from durable.triggers import Concurrency, Event, check_backoff
from durable.wire import Backoff, FunctionConfig

if TYPE_CHECKING:
    from durable.app import App

Handler = Callable[..., Any]

RETRIES_DEFAULT: Final = 3
RETRIES_MAX: Final = 100
TRIGGERS_MAX: Final = 10
STEP_TIMEOUT_SECONDS_DEFAULT: Final = 900.0
NAME_CHARACTERS_MAX: Final = 256
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Function:
    """What `@app.function` leaves in place of the handler. Called, it calls the handler, which is how unit tests use
    it; durably it runs when the engine says so. `retries` counts the tries after the first.
    """

    id: str
    name: str
    handler: Handler
    is_async: bool
    triggers: tuple[Event, ...]
    retries: int = RETRIES_DEFAULT
    backoff: Backoff = field(default_factory=Backoff)
    concurrency: tuple[Concurrency, ...] = ()
    step_timeout_seconds: float = STEP_TIMEOUT_SECONDS_DEFAULT
    app: "App | None" = field(default=None, repr=False)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self.handler(*arguments, **named)

    def config(self) -> FunctionConfig:
        """Its part of the manifest."""
        return FunctionConfig(
            id=self.id,
            name=self.name,
            triggers=[trigger.to_wire() for trigger in self.triggers],
            retries=self.retries,
            backoff=self.backoff,
            concurrency=[limit.to_wire() for limit in self.concurrency],
            step_timeout_seconds=self.step_timeout_seconds,
        )


def define_function(
    handler: Handler,
    *,
    triggers: Event | Sequence[Event],
    function_id: str | None = None,
    name: str | None = None,
    retries: int = RETRIES_DEFAULT,
    backoff: Backoff | None = None,
    concurrency: Concurrency | Sequence[Concurrency] = (),
    step_timeout: Duration = STEP_TIMEOUT_SECONDS_DEFAULT,
    app: "App | None" = None,
) -> Function:
    """A Function, its options checked. Raises TypeError or ValueError that name the function and the option."""
    own_name = getattr(handler, "__name__", type(handler).__name__)
    try:
        _check_handler(handler)
        checked_id = check_function_id(own_name.replace("<lambda>", "") if function_id is None else function_id)
        return Function(
            id=checked_id,
            name=_check_name(name if name is not None else checked_id),
            handler=handler,
            is_async=is_async_callable(handler),
            triggers=_check_triggers(triggers),
            retries=_check_retries(retries),
            backoff=check_backoff(backoff if backoff is not None else Backoff()),
            concurrency=_check_concurrency(concurrency),
            step_timeout_seconds=_check_step_timeout(step_timeout),
            app=app,
        )
    except (TypeError, ValueError) as fault:
        kind = TypeError if isinstance(fault, TypeError) else ValueError
        raise kind(f"The function {own_name!r} can not be defined: {fault}") from None


def check_function_id(function_id: object) -> str:
    """The id, if a function can have it."""
    if isinstance(function_id, str) and _ID.fullmatch(function_id):
        return function_id
    raise ValueError(
        f"The function id {function_id!r:.160} must be 1–128 of letters, digits, `_`, `.`, `-`, beginning with a letter or "
        'digit. Give one with id="…".'
    )


def is_async_callable(handler: Handler) -> bool:
    """Whether calling it gives something to await, also through functools.partial and objects with __call__."""
    if isinstance(handler, FunctionType) and handler.__code__.co_flags & inspect.CO_COROUTINE:
        return True
    while hasattr(handler, "func") and hasattr(handler, "keywords"):
        handler = handler.func
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(getattr(handler, "__call__", None))  # noqa: B004


def _check_handler(handler: object) -> None:
    if isinstance(handler, Function):
        raise TypeError("it is a durable function already; decorate it once.")
    if not callable(handler) or inspect.isclass(handler):
        raise TypeError("write @app.function(trigger=…) above a function.")
    if inspect.isgeneratorfunction(handler) or inspect.isasyncgenfunction(handler):
        raise TypeError("a handler returns its result; this one is a generator. Leave `yield` out.")
    try:
        signature = inspect.signature(handler)
    except (TypeError, ValueError):
        return  # written in C, without a signature: the first call will tell
    try:
        signature.bind(object(), object())
    except TypeError:
        raise TypeError(f"a handler takes (event, step); this one takes {signature}.") from None


def _check_name(name: object) -> str:
    if not isinstance(name, str) or not 1 <= len(name) <= NAME_CHARACTERS_MAX:
        raise ValueError(f"`name` is a text of 1–{NAME_CHARACTERS_MAX} characters, not {name!r:.80}.")
    return name


def _check_triggers(triggers: object) -> tuple[Event, ...]:
    listed = (triggers,) if isinstance(triggers, Event) else tuple(triggers) if isinstance(triggers, list | tuple) else None
    if listed is None or not all(isinstance(trigger, Event) for trigger in listed):
        raise TypeError(f'`trigger` is a durable.Event("user.created"), `triggers` a list of them, not {triggers!r:.80}.')
    if not 1 <= len(listed) <= TRIGGERS_MAX:
        raise ValueError(f"it has {len(listed)} triggers; 1–{TRIGGERS_MAX} are allowed.")
    return listed


def _check_retries(retries: object) -> int:
    if isinstance(retries, bool) or not isinstance(retries, int) or not 0 <= retries <= RETRIES_MAX:
        raise ValueError(f"`retries` is a whole number from 0 to {RETRIES_MAX} (tries after the first), not {retries!r:.80}.")
    return retries


def _check_concurrency(limits: object) -> tuple[Concurrency, ...]:
    listed = (limits,) if isinstance(limits, Concurrency) else tuple(limits) if isinstance(limits, list | tuple) else None
    if listed is None or not all(isinstance(limit, Concurrency) for limit in listed):
        raise TypeError(f"`concurrency` is a durable.Concurrency(limit=2) or a list of them, not {limits!r:.80}.")
    return listed


def _check_step_timeout(step_timeout: Duration) -> float:
    seconds = parse_duration(step_timeout)
    if seconds <= 0:
        raise ValueError('`step_timeout` must be longer than 0, such as "15m".')
    return seconds
