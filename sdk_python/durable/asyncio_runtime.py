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
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import Context, ContextVar, copy_context
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


def new_signal() -> Signal:
    """A signal for a task of this loop."""
    return AsyncioSignal(asyncio.get_running_loop())


@asynccontextmanager
async def open_scope() -> "AsyncIterator[AsyncioScope]":
    """A scope for one invocation. Leaving it cancels what still runs in it and waits for that."""
    scope = AsyncioScope(asyncio.get_running_loop())
    try:
        yield scope
    finally:
        await scope.close()


class AsyncioScope:
    """The tasks of one invocation."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.tasks: set[asyncio.Task[Any]] = set()

    def new_signal(self) -> "AsyncioSignal":
        return AsyncioSignal(self.loop)

    def new_host(self, execution: Any) -> Host:
        return AsyncioHost(self, execution) if execution.function.is_async else ThreadHost(self, execution)

    def start(self, run: Callable[..., Awaitable[None]], *arguments: Any, context: Context | None = None) -> "asyncio.Task[None]":
        context = copy_context() if context is None else context
        # Bodies and checkpoints are no tasks of the handler: its idleness does not depend on them.
        context.run(_host_here.set, None)
        task: asyncio.Task[None] = self.loop.create_task(run(*arguments), context=context)  # type: ignore[arg-type]
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def run_limited(self, timeout_seconds: float, call: Callable[[], Any], *, is_async: bool) -> Any:
        limit = asyncio.timeout(timeout_seconds)
        try:
            async with limit:
                value = call() if is_async else await self._run_in_thread(call)
                # Also when a plain function, such as a lambda, gave a coroutine.
                return await value if inspect.isawaitable(value) else value
        except TimeoutError:
            if limit.expired():
                raise StepTimeout(timeout_seconds) from None
            raise

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
        while self.tasks:
            for task in self.tasks:
                task.cancel()
            # One that swallows its cancellation is cancelled again, and waited for: leaving without it would leak it.
            await asyncio.wait(self.tasks, timeout=UNWIND_SECONDS_MAX)


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
                alarm = self._loop.call_later(max(until - time.monotonic(), 0), _set_result, waiter, None)
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
        self._steps_while_unwinding = 0
        self._stuck: asyncio.Future[None] = scope.loop.create_future()

    def start(self, signal: Signal, context: Context) -> None:
        self._signal = signal
        context.run(_host_here.set, self)
        _watch_new_tasks(self._loop)
        self._root = self._loop.create_task(self._run(), context=context)
        self._scope.tasks.add(self._root)
        self._root.add_done_callback(self._root_ended)

    async def _run(self) -> None:
        execution = self._execution
        try:
            value = await execution.function.handler(execution.event, Step(execution, self))
            self.outcome = Outcome(value=value)
        except BaseException as error:
            self.outcome = Outcome(error=error)

    def _root_ended(self, root: asyncio.Task[None]) -> None:
        self._scope.tasks.discard(root)
        if self.outcome is None:  # cancelled before its first turn
            self.outcome = Outcome(error=asyncio.CancelledError())
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
            outcome = await reply.future
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

    def delivered(self, task: "asyncio.Task[Any]") -> None:
        """The step of this task has its result: it is not idle, though it has not run yet."""
        self._moves += 1
        self._in_steps.discard(task)
        self._outside.add(task)

    async def _slow_down(self) -> None:
        # A handler that catches everything in a loop would spin here. The turn lets the other runs of the process go on.
        self._steps_while_unwinding += 1
        if self._steps_while_unwinding < STEPS_WHILE_UNWINDING_MAX:
            await asyncio.sleep(0)
            return
        _set_result(self._stuck, None)
        await self._loop.create_future()

    async def until_idle(self) -> bool:
        quiet_turns = 0
        moves = self._moves
        for _ in range(BUSY_TURNS_MAX):
            if self.outcome is not None:
                break
            if self._has_runnable_task() or moves != self._moves:
                moves = self._moves
                quiet_turns = 0
            elif moves == self._settled_at_move or quiet_turns >= QUIET_TURNS:
                break
            elif not self._outside and not self._has_shrunk:
                break  # all its tasks await steps, and none has ended that another could be told of
            else:
                quiet_turns += 1
            await asyncio.sleep(0)
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
        for task in (self._root, *self._outside, *self._in_steps):
            if task is not None:
                task.cancel()

    async def unwind(self) -> bool:
        root = self._root
        assert root is not None
        was_over = self.outcome is not None
        if not root.done():
            root.cancel()
            await asyncio.wait({root, self._stuck}, return_when=asyncio.FIRST_COMPLETED, timeout=UNWIND_SECONDS_MAX)
            if self._stuck.done():
                # Nothing ends such a handler. Its task is left to the garbage collector, waiting for nothing.
                logger.error("function %s: the handler catches everything in a loop and can not be ended", self._name)
                self._scope.tasks.discard(root)
                return False
            await self._wait_until_ended({root})
        others = {task for task in (*self._outside, *self._in_steps) if not task.done()}
        while others:
            for task in others:
                task.cancel()
            await self._wait_until_ended(others)
            others = {task for task in (*self._outside, *self._in_steps) if not task.done()}
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


class AsyncioReply:
    """See `runtime.Reply`."""

    def __init__(self, host: AsyncioHost, task: "asyncio.Task[Any]") -> None:
        self.future: asyncio.Future[Outcome] = task.get_loop().create_future()
        self._host = host
        self._task = task

    def deliver(self, outcome: Outcome) -> None:
        if not self.future.done():
            self.future.set_result(outcome)
            self._host.delivered(self._task)


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
    loop.set_task_factory(create_task)
