"""Runs invocations on Trio: tasks, clocks, and the knowledge of when a Trio handler is idle.

Owns a nursery for each invocation. Idleness is exact: an instrument counts, for each handler, its tasks that are
scheduled and not yet stepped. When the count is 0 every task of the handler waits, and only something from outside
of it (a step's result, a clock, a socket) can wake one.
"""

import inspect
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from contextvars import Context, ContextVar, copy_context
from typing import Any, Final

import trio

from durable.await_place import find_await_place
from durable.errors import Parked
from durable.runtime import Host, Outcome, Signal, StepTimeout, is_parked
from durable.step import Step
from durable.thread_runtime import ThreadHost, bodies


def new_signal() -> Signal:
    """A signal for a task of this loop."""
    return TrioSignal()


@asynccontextmanager
async def open_scope() -> "AsyncIterator[TrioScope]":
    """A scope for one invocation. Leaving it cancels what still runs in it and waits for that."""
    async with trio.open_nursery() as nursery:
        yield TrioScope(nursery)
        nursery.cancel_scope.cancel()


class TrioScope:
    """The tasks of one invocation."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self._token = trio.lowlevel.current_trio_token()

    def new_signal(self) -> "TrioSignal":
        return TrioSignal()

    def new_host(self, execution: Any) -> Host:
        return TrioHost(self, execution) if execution.function.is_async else ThreadHost(self, execution)

    def start(self, run: Callable[..., Coroutine[Any, Any, None]], *arguments: Any, context: Context) -> trio.CancelScope:
        # Bodies are no tasks of the handler: its idleness does not depend on them.
        context.run(_host_here.set, None)
        cancel_scope = trio.CancelScope()

        async def run_in_scope() -> None:
            with cancel_scope:
                await run(*arguments)

        context.run(self.nursery.start_soon, run_in_scope)
        return cancel_scope

    def ended(self, job: object) -> None:
        pass  # the nursery knows

    async def run_limited(self, timeout_seconds: float, call: Callable[[], Any], *, is_async: bool) -> Any:
        with trio.move_on_after(timeout_seconds):
            value = call() if is_async else await self._run_in_thread(call)
            # Also when a plain function, such as a lambda, gave a coroutine.
            return await value if inspect.isawaitable(value) else value
        raise StepTimeout(timeout_seconds)

    async def _run_in_thread(self, call: Callable[[], Any]) -> Any:
        reply = TrioReply()

        def hear(outcome: Outcome) -> None:
            self.call_from_thread(reply.deliver, outcome)

        job = bodies.start(call, hear, copy_context())
        try:
            outcome = await reply.wait()
        except BaseException:
            job.give_up()
            raise
        if outcome.error is not None:
            raise outcome.error
        return outcome.value

    def call_from_thread(self, call: Callable[..., None], *arguments: Any) -> bool:
        try:
            self._token.run_sync_soon(call, *arguments)
        except trio.RunFinishedError:
            return False
        return True


class TrioSignal:
    """See `runtime.Signal`."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def set(self) -> None:
        self._event.set()

    def clear(self) -> None:
        if self._event.is_set():
            self._event = trio.Event()

    async def wait(self, until: float | None) -> bool:
        if until is None:
            await self._event.wait()
        else:
            with trio.move_on_after(max(until - time.monotonic(), 0)):
                await self._event.wait()
        was_set = self._event.is_set()
        self.clear()
        return was_set


class TrioHost:
    """An async handler on Trio: its tasks, which of them await steps, and how to end them."""

    def __init__(self, scope: TrioScope, execution: Any) -> None:
        self.outcome: Outcome | None = None
        self.runnable_count = 0
        self.signal: Signal = TrioSignal()
        self._scope = scope
        self._execution = execution
        self._root: trio.lowlevel.Task | None = None
        self._in_steps: set[trio.lowlevel.Task] = set()
        self._ended = trio.Event()
        # Shielded: a cancellation from outside reaches the execution, which then unwinds the handler; else the
        # handler's steps could not tell it from a clock of the user.
        self._cancel_scope = trio.CancelScope(shield=True)

    def start(self, signal: Signal, context: Context) -> None:
        self.signal = signal
        _watch_turns()
        context.run(_host_here.set, self)
        context.run(self._scope.nursery.start_soon, self._run)

    async def _run(self) -> None:
        execution = self._execution
        self._root = trio.lowlevel.current_task()
        with self._cancel_scope:
            try:
                value = await execution.function.handler(execution.event, Step(execution, self))
                self.outcome = Outcome(value=value)
            except BaseException as error:
                self.outcome = Outcome(error=error)
        self._end()

    def _end(self) -> None:
        self._ended.set()
        self.signal.set()

    async def wait_for_step(self, open_step: Callable[[], Any]) -> Any:
        """Call a step and await its result; the await of every async step tool on Trio."""
        try:
            step = open_step()
        except Parked:
            # The handler's scope is cancelled by now: Trio's own exception unwinds best. The rest is for a handler
            # that shields itself.
            await trio.lowlevel.checkpoint()
            raise
        task = trio.lowlevel.current_task()
        step.reply = reply = TrioReply()
        self._in_steps.add(task)
        try:
            outcome = await reply.wait()
        except trio.Cancelled:
            instead = self._execution.cancelled(step)
            if instead is not None and not isinstance(instead, Parked):
                raise instead from None
            raise
        finally:
            self._in_steps.discard(task)
        if outcome.error is not None:
            raise outcome.error
        return outcome.value

    def is_idle(self) -> bool:
        return self.runnable_count <= 0 or self.outcome is not None

    async def until_idle(self, until: float | None) -> bool:
        if not self.is_idle():
            await self.signal.wait(until)
        return self.is_idle()

    def outside_waits(self) -> list[str]:
        places = (find_await_place(task.coro, _is_inside) for task in _tasks_below(self._root) if task not in self._in_steps)
        return [place for place in places if place is not None]

    def stop(self) -> None:
        self._cancel_scope.cancel()

    async def unwind(self) -> bool:
        was_over = self.outcome is not None
        self._cancel_scope.cancel()
        await self._ended.wait()
        self._root = None
        return was_over or (self.outcome is not None and is_parked(self.outcome))


class TrioReply:
    """See `runtime.Reply`."""

    def __init__(self) -> None:
        self._event = trio.Event()
        self._outcome: Outcome | None = None

    def deliver(self, outcome: Outcome) -> None:
        if self._outcome is None:
            self._outcome = outcome
            self._event.set()

    async def wait(self) -> Outcome:
        await self._event.wait()
        assert self._outcome is not None
        return self._outcome


def _tasks_below(task: trio.lowlevel.Task | None) -> "list[trio.lowlevel.Task]":
    if task is None:
        return []
    found = [task]
    for nursery in task.child_nurseries:
        for child in nursery.child_tasks:
            found += _tasks_below(child)
    return found


def _is_inside(filename: str, function: str) -> bool:
    """Whether a task that waits here waits for another task of the handler, as far as one can see."""
    path = filename.replace("\\", "/")
    if path.endswith("trio/_core/_run.py"):
        return function in ("_nested_child_finished", "__aexit__")
    return path.endswith(("trio/_sync.py", "trio/_channel.py", "trio/_core/_parking_lot.py"))


# Which host a task belongs to; tasks that a handler starts inherit it with their context.
_host_here: ContextVar[TrioHost | None] = ContextVar("durable_trio_host", default=None)
_is_watched: Final = trio.lowlevel.RunVar("durable_is_watched", False)


class _TurnCounter(trio.abc.Instrument):
    """Counts, for each host, the tasks that are scheduled and not yet stepped."""

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        host = task.context.get(_host_here)
        if host is not None:
            host.runnable_count += 1

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        host = task.context.get(_host_here)
        if host is not None:
            host.runnable_count -= 1
            if host.runnable_count <= 0:
                host.signal.set()


def _watch_turns() -> None:
    if not _is_watched.get():
        _is_watched.set(True)
        trio.lowlevel.add_instrument(_TurnCounter())
