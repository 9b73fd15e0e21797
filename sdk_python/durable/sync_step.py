"""The step tools of sync handlers: what a sync handler receives as `step`. The names of `step.Step`, without await.

Owns the signatures that users see. `step_calls` says what each call opens; the calling thread blocks for its result.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, overload

from durable.durations import Duration
from durable.event import Event
from durable.replay_log import ReplayLogger, replay_aware
from durable.step_calls import (
    OpenCall,
    open_run,
    open_send_event,
    open_sleep,
    open_sleep_until,
    open_wait_for_event,
)
from durable.wire import Backoff, MatchValue

if TYPE_CHECKING:
    from durable.executor import Execution

T = TypeVar("T")


class SyncHost(Protocol):
    """The part of a host that step tools use."""

    def wait_for_step(self, open_step: OpenCall) -> Any: ...


class SyncStep:
    """The steps of one run. Every result is remembered: a handler that starts again gets it without the work.

        def onboarding(event: durable.Event, step: durable.Step) -> str:
            user = step.run("load-user", load_user, event.data["id"])
            step.sleep("cooldown", "2d")
            return step.run("welcome", send_welcome, user)

    Ids name what a step does and stay the same over deploys. A repeated id counts: `load`, `load#2` ….
    """

    def __init__(self, execution: "Execution", host: SyncHost) -> None:
        self._execution = execution
        self._host = host
        self._logger: ReplayLogger | None = None

    @overload
    def run(
        self, id: str, fn: Callable[..., Awaitable[T]], *args: Any, retries: int | None = None,
        backoff: Backoff | None = None, timeout: Duration | None = None, **kwargs: Any,
    ) -> T: ...  # fmt: skip

    @overload
    def run(
        self, id: str, fn: Callable[..., T], *args: Any, retries: int | None = None,
        backoff: Backoff | None = None, timeout: Duration | None = None, **kwargs: Any,
    ) -> T: ...  # fmt: skip

    def run(
        self,
        id: str,
        fn: Callable[..., Any],
        *args: Any,
        retries: int | None = None,
        backoff: Backoff | None = None,
        timeout: Duration | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run `fn(*args, **kwargs)` once and remember what it returns, which must be JSON.

        Gives the result as JSON gives it back (a tuple is a list), the first time too. It runs in another
        worker thread, an async `fn` on the loop. When it raises it is tried again: `retries` times, with pauses by
        `backoff` (both default to the function's); then `StepError` is raised here. `timeout` limits one try
        (the default and the most is the function's `step_timeout`).
        """
        call = open_run(self._execution, id, fn, args, kwargs, retries=retries, backoff=backoff, timeout=timeout)
        return self._host.wait_for_step(call)

    def sleep(self, id: str, duration: Duration) -> None:
        """Wait for `"30s"`, `"2d"`, `"1h30m"` or a number of seconds. Nothing is held meanwhile."""
        self._host.wait_for_step(open_sleep(self._execution, id, duration))

    def sleep_until(self, id: str, instant: datetime | str) -> None:
        """Wait until an instant with a time zone: a datetime or text like `2026-01-31T09:00:00Z`."""
        self._host.wait_for_step(open_sleep_until(self._execution, id, instant))

    def wait_for_event(
        self,
        id: str,
        *,
        event: str,
        match: Mapping[str, MatchValue] | None = None,
        if_: str | None = None,
        timeout: Duration,
    ) -> Event | None:
        """The next event of that name since the run began that no earlier wait of it took, or None at the timeout.

        `match` asks for equal values in its data (`{"order.id": 7}`), `if_` is a CEL expression over `event`.
        """
        call = open_wait_for_event(self._execution, id, event, match, if_, timeout)
        result: Event | None = self._host.wait_for_step(call)
        return result

    def send_event(self, id: str, events: Mapping[str, Any] | Event | Sequence[Mapping[str, Any] | Event]) -> list[str]:
        """Send one event, `{"name": …, "data": …}`, or a list of them, once; their ids."""
        ids: list[str] = self._host.wait_for_step(open_send_event(self._execution, id, events))
        return ids

    @property
    def run_id(self) -> str:
        return self._execution.invocation.run_id

    @property
    def attempt(self) -> int:
        """Counts the tries of the function from 1; a remembered step sets it back."""
        return self._execution.invocation.attempt

    @property
    def is_replaying(self) -> bool:
        """Whether the handler is on its way through results that an earlier invocation has seen."""
        return self._execution.is_replaying

    @property
    def logger(self) -> ReplayLogger:
        """A logger that is silent while the handler replays, so that each line is written once."""
        if self._logger is None:
            execution = self._execution
            name = f"durable.{execution.function.id}"
            self._logger = replay_aware(logging.getLogger(name), run_id=execution.invocation.run_id)
        return self._logger
