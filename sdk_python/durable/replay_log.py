"""Log lines once: suppresses what a handler logs while it replays turns that an earlier invocation took already.

Owns the context variable that says so, which the executor sets; `ReplayFilter` and `replay_aware` read it.
Never touches loggers that it was not given.
"""

import logging
from collections.abc import MutableMapping
from contextvars import ContextVar
from typing import Any, Protocol

# Asked for its truth at each line, so it may be an object whose truth changes while the handler goes on.
is_replaying: ContextVar[object] = ContextVar("durable_is_replaying", default=False)


class Replaying(Protocol):
    is_replaying: bool


class Replay:
    """True while this execution replays; stands in the context of its handler's tasks."""

    def __init__(self, execution: Replaying) -> None:
        self._execution = execution

    def __bool__(self) -> bool:
        return self._execution.is_replaying


class ReplayFilter(logging.Filter):
    """A filter for your own loggers or handlers: `logging.getLogger("shop").addFilter(ReplayFilter())`.

    A filter of a logger sees only what is logged through that very logger; put it on a handler to cover all.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        return not is_replaying.get()


class ReplayLogger(logging.LoggerAdapter[logging.Logger]):
    """What `step.logger` is: the logger of the function, silent on replay, with the run's id in `extra`."""

    def isEnabledFor(self, level: int) -> bool:
        return not is_replaying.get() and super().isEnabledFor(level)

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return msg, kwargs


def replay_aware(logger: logging.Logger, **words: object) -> ReplayLogger:
    """The logger, silent while the handler replays; `words` become attributes of every record."""
    return ReplayLogger(logger, words)
