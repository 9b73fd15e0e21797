"""What the executor needs of asyncio, Trio or threads: the interface that the runtimes fill in.

A runtime opens a scope for each invocation; the scope owns every task that the invocation starts, and ends them
when it is left. A host runs the handler in it and knows when the handler is idle.
"""

from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from contextvars import Context
from dataclasses import dataclass
from typing import Any, Protocol

import sniffio

from durable.errors import DurableError


class StepTimeout(DurableError):
    """A step's body took longer than its timeout. It is tried again by the step's policy. Raise `timeout=` of the step if
    the work needs more time.
    """

    code: str = "step_timeout"

    def __init__(self, timeout_seconds: float) -> None:
        super().__init__(f"The body took longer than its timeout of {timeout_seconds:g} s.")


@dataclass(slots=True)
class Outcome:
    """What a handler or step gives: a value, or an error to raise."""

    value: Any = None
    error: BaseException | None = None


class Signal(Protocol):
    """Wakes its one waiter. Set while nobody waits, it is kept for the next `wait`, which clears it."""

    def set(self) -> None: ...

    def clear(self) -> None: ...

    async def wait(self, until: float | None) -> bool:
        """Wait until it is set, or until the monotonic instant `until`; whether it was set."""
        ...


class Reply(Protocol):
    """Where the handler's side waits for the result of one step."""

    def deliver(self, outcome: Outcome) -> None: ...


class Job(Protocol):
    """A task of the scope."""

    def cancel(self) -> Any:
        """Cancel it soon; a thread is left to end unheard."""
        ...


class Host(Protocol):
    """Runs the handler. `outcome` is set when it has ended by itself."""

    outcome: Outcome | None

    def start(self, signal: Signal, context: Context) -> None:
        """Start the handler in this context. `signal`, which wakes the execution, is set when it has ended."""
        ...

    def is_idle(self) -> bool:
        """Whether every task of the handler waits for a step, or the handler has ended. False may also mean that it
        takes a longer look, `until_idle`, to tell.
        """
        ...

    async def until_idle(self, until: float | None) -> bool:
        """Wait until every task of the handler waits, or the handler has ended: True. False: the signal was set
        meanwhile or the monotonic instant `until` has come, and the handler is still at work.
        """
        ...

    def outside_waits(self) -> list[str]:
        """The places, `file:line`, at which an idle handler waits for something that is no step."""
        ...

    def stop(self) -> None:
        """Have the handler end soon; without waiting for it."""
        ...

    async def unwind(self) -> bool:
        """End the handler and its tasks. False when it swallowed that and ended by itself."""
        ...


class Scope(Protocol):
    """Owns the tasks of one invocation."""

    def new_signal(self) -> Signal: ...

    def new_host(self, execution: Any) -> Host: ...

    def start(self, run: Callable[..., Coroutine[Any, Any, None]], *arguments: Any, context: Context) -> Job:
        """Start a task in this context, which nothing else may use."""
        ...

    def ended(self, job: Job | None) -> None:
        """Forget a task that is at its end; it says so itself."""
        ...

    async def run_limited(self, timeout_seconds: float, call: Callable[[], Any], *, is_async: bool) -> Any:
        """Call it, in a worker thread unless `is_async`; `StepTimeout` when it takes longer."""
        ...

    def call_from_thread(self, call: Callable[..., None], *arguments: Any) -> bool:
        """Call it on the loop, from any thread. False when the loop is gone and nothing is called."""
        ...


class Runtime(Protocol):
    def open_scope(self) -> AbstractAsyncContextManager[Any]:
        """The context manager gives a `Scope`."""
        ...

    def new_signal(self) -> Signal: ...


def is_parked(outcome: Outcome) -> bool:
    """Whether a handler that was unwound let that pass. An error that Parked is only a part of was no swallowing."""
    error = outcome.error
    if isinstance(error, BaseExceptionGroup):
        return not isinstance(error, ExceptionGroup)
    return error is not None and not isinstance(error, Exception)


def current_runtime() -> Runtime:
    """The runtime of the loop that is running here, asyncio or Trio."""
    # Not trio.lowlevel.in_trio_run(): with trio-asyncio that is true in asyncio's tasks too.
    if sniffio.current_async_library() == "trio":
        from durable import trio_runtime

        return trio_runtime
    from durable import asyncio_runtime

    return asyncio_runtime
