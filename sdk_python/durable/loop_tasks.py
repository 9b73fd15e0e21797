"""Tasks that outlive the request in which they were started, on asyncio and on Trio.

Owns them until `cancel`. Each reports its own errors: none ends the others, and on Trio none may crash the loop.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from typing import Any, Final, Protocol

import sniffio

logger: Final = logging.getLogger("durable")


class LoopTasks(Protocol):
    """All methods run on the loop of the tasks."""

    def start(self, run: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        """Start a task."""
        ...

    def cancel(self) -> None:
        """Cancel all that run; the caller may be one of them."""
        ...


def open_loop_tasks() -> LoopTasks:
    """For the loop that runs here."""
    return TrioTasks() if sniffio.current_async_library() == "trio" else AsyncioTasks()


class AsyncioTasks:
    def __init__(self) -> None:
        # The loop itself holds tasks only weakly.
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, run: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        task = asyncio.get_running_loop().create_task(_reported(run, *arguments))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def cancel(self) -> None:
        caller = asyncio.current_task()
        for task in [task for task in self._tasks if task is not caller]:
            task.cancel()


class TrioTasks:
    """System tasks, which no request owns. Trio cancels them when its main task has ended."""

    def __init__(self) -> None:
        import trio

        self._trio = trio
        self._scopes: dict[Any, object] = {}

    def start(self, run: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        scope = self._trio.CancelScope()
        self._scopes[scope] = self._trio.lowlevel.spawn_system_task(
            self._in_scope, scope, run, *arguments, context=copy_context()
        )

    def cancel(self) -> None:
        caller = self._trio.lowlevel.current_task()
        for scope, task in list(self._scopes.items()):
            if task is not caller:
                scope.cancel()

    async def _in_scope(self, scope: Any, run: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        try:
            with scope:
                await _reported(run, *arguments)
        finally:
            del self._scopes[scope]


async def _reported(run: Callable[..., Awaitable[None]], *arguments: Any) -> None:
    try:
        await run(*arguments)
    except Exception:
        logger.exception("a task of the SDK broke")
