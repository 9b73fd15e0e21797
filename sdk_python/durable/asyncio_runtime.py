"""Runs invocations on asyncio: tasks, clocks, and the knowledge of when an asyncio handler is idle.

Owns the tasks of each invocation and ends them with it. Idleness, exactly: a handler whose tasks all await steps is
idle. Where a task awaits something else (gather, a task group, a lock), the loop is given QUIET_TURNS turns in which
no task may become runnable and no step be called, because a finished task wakes its waiter through one callback a
turn: gather needs two turns, a task group two, a gather inside of a gather three. Tasks are known through the loop's
task factory, and a task is runnable when the future that it awaits is done.
"""

import asyncio
import inspect
import logging
import time
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from types import CoroutineType
from typing import Any, Final

from durable.await_place import find_await_place
from durable.errors import Parked
from durable.runtime import Host, Outcome, Signal, StepTimeout, is_parked
from durable.step import Step
from durable.thread_runtime import ThreadHost, bodies

logger: Final = logging.getLogger("durable")

QUIET_TURNS: Final = 6
BUSY_TURNS_MAX: Final = 1_000
"""A handler that takes turn after turn without a step (it polls something) is no reason to hold back checkpoints."""

UNWIND_SECONDS_MAX: Final = 10.0
"""How long `finally` blocks of a handler may take when an invocation ends."""

STEPS_WHILE_UNWINDING_MAX: Final = 10_000

_NO_CONTEXT: Final = Context()
"""For alarms: the loop keeps a cancelled one until its time, and with it a context and all that is in that."""


def new_signal() -> Signal:
    """A signal for a task of this loop."""
    return AsyncioSignal(asyncio.get_running_loop())


def open_scope() -> "AsyncioScope":
    """A scope for one invocation. Leaving it cancels what still runs in it and waits for that."""
    return AsyncioScope(asyncio.get_running_loop())


class AsyncioScope:
    """The tasks of one invocation."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.tasks: set[asyncio.Task[Any]] = set()
        self._limits = _Limits(loop)

    async def __aenter__(self) -> "AsyncioScope":
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def new_signal(self) -> "AsyncioSignal":
        return AsyncioSignal(self.loop)

    def new_host(self, execution: Any) -> Host:
        return AsyncioHost(self, execution) if execution.function.is_async else ThreadHost(self, execution)

    def start(self, run: Callable[..., Coroutine[Any, Any, None]], *arguments: Any, context: Context) -> "asyncio.Task[None]":
        # Bodies are no tasks of the handler: its idleness does not depend on them.
        context.run(_host_here.set, None)
        task: asyncio.Task[None] = _create_task(self.loop, run(*arguments), context)
        self.tasks.add(task)
        return task

    def ended(self, job: Any) -> None:
        self.tasks.discard(job)

    async def run_limited(self, timeout_seconds: float, call: Callable[[], Any], *, is_async: bool) -> Any:
        task = asyncio.current_task(self.loop)
        assert task is not None
        self._limits.begin(task, timeout_seconds)
        try:
            value = call() if is_async else await self._run_in_thread(call)
            # Also when a plain function, such as a lambda, gave a coroutine.
            return await value if isinstance(value, CoroutineType) or inspect.isawaitable(value) else value
        except asyncio.CancelledError:
            if self._limits.has_struck(task):
                raise StepTimeout(timeout_seconds) from None
            raise
        finally:
            self._limits.over(task)

    async def _run_in_thread(self, call: Callable[[], Any]) -> Any:
        reply: asyncio.Future[Outcome] = self.loop.create_future()

        def hear(outcome: Outcome) -> None:
            self.call_from_thread(_set_result, reply, outcome)

        job = bodies.start(call, hear, copy_context())
        try:
            outcome = await reply
        except BaseException:
            job.give_up()
            raise
        if outcome.error is not None:
            raise outcome.error
        return outcome.value

    def call_from_thread(self, call: Callable[..., None], *arguments: Any) -> bool:
        try:
            self.loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:
            if not self.loop.is_closed():
                raise
            return False
        return True

    async def close(self) -> None:
        while left := [task for task in self.tasks if not task.done()]:
            for task in left:
                task.cancel()
            # One that swallows its cancellation is cancelled again, and waited for: leaving without it would leak it.
            await asyncio.wait(left, timeout=UNWIND_SECONDS_MAX)
        self.tasks.clear()
        self._limits.close()


class _Limits:
    """The time limits of the tasks of one scope, with one alarm for all: most tasks end long before theirs."""

    __slots__ = ("_alarm", "_alarm_at", "_ends", "_loop", "_struck")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._ends: dict[asyncio.Task[Any], float] = {}
        self._struck: set[asyncio.Task[Any]] = set()
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = 0.0

    def begin(self, task: "asyncio.Task[Any]", seconds: float) -> None:
        """Cancel the task when it is not `over` by then."""
        self._ends[task] = ends_at = self._loop.time() + seconds
        if self._alarm is None or ends_at < self._alarm_at:
            self._arm(ends_at)

    def over(self, task: "asyncio.Task[Any]") -> None:
        self._ends.pop(task, None)

    def has_struck(self, task: "asyncio.Task[Any]") -> bool:
        """Whether a cancellation that arrived is the limit's own, and not somebody else's too."""
        return task in self._struck and task.uncancel() == 0

    def close(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()

    def _arm(self, at: float) -> None:
        self.close()
        self._alarm, self._alarm_at = self._loop.call_at(at, self._ring, context=_NO_CONTEXT), at

    def _ring(self) -> None:
        self._alarm = None
        now = max(self._loop.time(), self._alarm_at)
        for task in [task for task, ends_at in self._ends.items() if ends_at <= now]:
            del self._ends[task]
            self._struck.add(task)
            task.cancel()
        if self._ends:
            self._arm(min(self._ends.values()))


class AsyncioSignal:
    """See `runtime.Signal`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._is_set = False
        self._waiter: asyncio.Future[None] | None = None

    def set(self) -> None:
        self._is_set = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def clear(self) -> None:
        self._is_set = False

    async def wait(self, until: float | None) -> bool:
        if not self._is_set:
            self._waiter = waiter = self._loop.create_future()
            alarm = None
            if until is not None:
                seconds = max(until - time.monotonic(), 0)
                alarm = self._loop.call_later(seconds, _set_result, waiter, None, context=_NO_CONTEXT)
            try:
                await waiter
            finally:
                self._waiter = None
                if alarm is not None:
                    alarm.cancel()
        was_set, self._is_set = self._is_set, False
        return was_set


class AsyncioHost:
    """An async handler on asyncio: its tasks, which of them await steps, and how to end them."""

    def __init__(self, scope: AsyncioScope, execution: Any) -> None:
        self.outcome: Outcome | None = None
        self._scope = scope
        self._loop = scope.loop
        self._name = execution.function.id
        self._execution = execution
        self._signal: Signal | None = None
        self._root: asyncio.Task[None] | None = None
        self._outside: set[asyncio.Task[Any]] = set()
        self._in_steps: set[asyncio.Task[Any]] = set()
        # Counts what the handler does; a turn in which it changed is not a quiet one.
        self._moves = 0
        self._settled_at_move = -1
        self._has_shrunk = False
        self._is_stopping = False
        self._steps_while_unwinding = 0
        self._stuck: asyncio.Future[None] | None = None

    def start(self, signal: Signal, context: Context) -> None:
        self._signal = signal
        context.run(_host_here.set, self)
        _watch_new_tasks(self._loop)
        self._root = root = _create_task(self._loop, self._run(), context)
        self._scope.tasks.add(root)
        self.adopt(root)

    async def _run(self) -> None:
        execution = self._execution
        try:
            value = await execution.function.handler(execution.event, Step(execution, self))
            self.outcome = Outcome(value=value)
        except BaseException as error:
            self.outcome = Outcome(error=error)
        assert self._signal is not None
        self._signal.set()

    def adopt(self, task: asyncio.Task[Any]) -> None:
        """A task was created by the handler or by one of its tasks."""
        if task not in self._in_steps:  # an eager task may be in its first step already
            self._outside.add(task)
        self._moves += 1

    async def wait_for_step(self, open_step: Callable[[], Any]) -> Any:
        """Call a step and await its result; the await of every async step tool on asyncio."""
        try:
            step = open_step()
        except Parked:
            await self._slow_down()
            raise
        self._moves += 1
        task = asyncio.current_task()
        assert task is not None
        step.reply = reply = AsyncioReply(self, task)
        self._outside.discard(task)
        self._in_steps.add(task)
        try:
            outcome = await reply
        except asyncio.CancelledError:
            instead = self._execution.cancelled(step)
            if instead is not None:
                raise instead from None
            raise
        finally:
            self._moves += 1
            self._in_steps.discard(task)
            self._outside.add(task)
        if outcome.error is not None:
            raise outcome.error
        return outcome.value

    def woken(self, task: "asyncio.Task[Any]") -> None:
        """The await of this task's step is over: it is not idle, though it has not run yet."""
        self._moves += 1
        self._in_steps.discard(task)
        self._outside.add(task)

    async def _slow_down(self) -> None:
        # A handler that catches everything in a loop would spin here. The turn lets the other runs of the process go on.
        self._steps_while_unwinding += 1
        if self._steps_while_unwinding < STEPS_WHILE_UNWINDING_MAX or self._stuck is None:
            await asyncio.sleep(0)
            return
        _set_result(self._stuck, None)
        await self._loop.create_future()

    def is_idle(self) -> bool:
        # All its tasks await steps, and none has ended that another could be told of.
        return self.outcome is not None or not (self._outside or self._has_shrunk)

    async def until_idle(self, until: float | None) -> bool:
        quiet_turns = 0
        moves = self._moves
        for _ in range(BUSY_TURNS_MAX):
            if self.outcome is not None:
                break
            if self._has_runnable_task() or moves != self._moves:
                moves = self._moves
                quiet_turns = 0
            elif moves == self._settled_at_move or quiet_turns >= QUIET_TURNS or self.is_idle():
                break
            else:
                quiet_turns += 1
            await asyncio.sleep(0)
            if until is not None and time.monotonic() >= until and not self.is_idle():
                return False
        else:
            return False
        self._settled_at_move = moves
        self._has_shrunk = False
        return True

    def _has_runnable_task(self) -> bool:
        ended = None
        for task in self._outside:
            if task.done():
                ended = [task] if ended is None else [*ended, task]
                continue
            awaited = task._fut_waiter  # type: ignore[attr-defined]
            if awaited is None or awaited.done():
                return True
        if ended is None:
            return False
        self._outside.difference_update(ended)
        self._has_shrunk = True
        return True

    def outside_waits(self) -> list[str]:
        places = (find_await_place(task.get_coro(), _is_inside) for task in self._outside if not self._awaits_its_own(task))
        return [place for place in places if place is not None]

    def _awaits_its_own(self, task: "asyncio.Task[Any]") -> bool:
        awaited = task._fut_waiter  # type: ignore[attr-defined]
        return awaited in self._outside or awaited in self._in_steps or type(awaited).__name__ == "_GatheringFuture"

    def stop(self) -> None:
        self._is_stopping = True
        for task in (self._root, *self._outside, *self._in_steps):
            if task is not None:
                task.cancel()

    async def unwind(self) -> bool:
        root = self._root
        assert root is not None
        was_over = self.outcome is not None
        if not was_over and not root.done():
            self._stuck = stuck = self._loop.create_future()
            if not self._is_stopping:  # a second cancellation would interrupt its `finally` blocks
                root.cancel()
            await asyncio.wait({root, stuck}, return_when=asyncio.FIRST_COMPLETED, timeout=UNWIND_SECONDS_MAX)
            if stuck.done():
                # Nothing ends such a handler. Its task is left to the garbage collector, waiting for nothing.
                logger.error("function %s: the handler catches everything in a loop and can not be ended", self._name)
                self._scope.tasks.discard(root)
                return False
            await self._wait_until_ended({root})
        if self.outcome is None:  # cancelled before its first turn
            self.outcome = Outcome(error=asyncio.CancelledError())
        others = {task for task in (*self._outside, *self._in_steps) if not task.done()}
        while others:
            for task in others:
                if not (self._is_stopping and task.cancelling()):
                    task.cancel()
            await self._wait_until_ended(others)
            others = {task for task in (*self._outside, *self._in_steps) if not task.done()}
        self._root = None
        self._outside.clear()
        self._in_steps.clear()
        return was_over or (self.outcome is not None and is_parked(self.outcome))

    async def _wait_until_ended(self, tasks: "set[asyncio.Task[Any]]") -> None:
        while tasks:
            ended, tasks = await asyncio.wait(tasks, timeout=UNWIND_SECONDS_MAX)
            for task in ended:
                self._outside.discard(task)
                if not task.cancelled():
                    task.exception()  # an error while unwinding is nobody's
            for task in tasks:
                task.cancel()


class AsyncioReply(asyncio.Future[Outcome]):
    """See `runtime.Reply`. The handler's task awaits it, so that a cancellation of that task is known at once."""

    def __init__(self, host: AsyncioHost, task: "asyncio.Task[Any]") -> None:
        super().__init__(loop=task.get_loop())
        self._host = host
        self._task = task

    def deliver(self, outcome: Outcome) -> None:
        if not self.done():
            self.set_result(outcome)
            self._host.woken(self._task)

    def cancel(self, msg: Any = None) -> bool:
        is_cancelled = super().cancel(msg)
        if is_cancelled:
            self._host.woken(self._task)
        return is_cancelled


def _set_result(future: "asyncio.Future[Any]", value: Any) -> None:
    if not future.done():
        future.set_result(value)


def _is_inside(filename: str, function: str) -> bool:
    """Whether a task that waits here waits for another task of the handler, as far as one can see."""
    path = filename.replace("\\", "/")
    return (
        path.endswith(
            ("asyncio/taskgroups.py", "asyncio/locks.py", "asyncio/queues.py", "asyncio/tasks.py", "asyncio/futures.py")
        )
        and function != "sleep"
    )


# Which host a task belongs to; tasks that a handler starts inherit it with their context.
_host_here: ContextVar[AsyncioHost | None] = ContextVar("durable_asyncio_host", default=None)


def _watch_new_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """Put a task factory before the loop's own, which tells hosts of their new tasks. Once a loop."""
    inner = loop.get_task_factory()
    if getattr(inner, "is_durable", False):
        return

    def create_task(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> Any:
        task: Any = asyncio.Task(coro, loop=loop, **options) if inner is None else inner(loop, coro, **options)
        context = options.get("context")
        host = _host_here.get() if context is None else context.get(_host_here)
        if host is not None:
            host.adopt(task)
        return task

    create_task.is_durable = True  # type: ignore[attr-defined]
    create_task.is_outermost = inner is None  # type: ignore[attr-defined]
    loop.set_task_factory(create_task)


def _create_task(loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, None], context: Context) -> "asyncio.Task[None]":
    """A task that no host has to be told of; past the factory where that would do nothing more."""
    if getattr(loop.get_task_factory(), "is_outermost", False):
        return asyncio.Task(coro, loop=loop, context=context)
    return loop.create_task(coro, context=context)
