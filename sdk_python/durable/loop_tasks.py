"""Tasks that outlive the request in which they were started, on asyncio and on Trio.

Owns them until `cancel`. Each reports its own errors: none ends the others, and on Trio none may crash the loop.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextvars import Context, copy_context
from typing import Any, Final, Protocol

import sniffio

logger: Final = logging.getLogger("durable")


class LoopTasks(Protocol):
    """All methods run on the loop of the tasks."""

    def start(self, run: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        """Start a task."""
        ...

    def cancel(self) -> None:
        """Cancel all that run; the caller may be one of them, at its end."""
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
    """Tasks of one nursery in a system task, which no request owns. Trio cancels it when its main task has ended."""

    def __init__(self) -> None:
        import trio

        self._trio = trio
        self._scope = trio.CancelScope()
        self._nursery: Any = None
        # What was started before the nursery was open, each in the context of who started it.
        self._early: list[tuple[Context, Callable[..., Awaitable[None]], tuple[Any, ...]]] = []
        trio.lowlevel.spawn_system_task(self._own)

    def start(self, run: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        if self._nursery is None:
            self._early.append((copy_context(), run, arguments))
        else:
            self._nursery.start_soon(_reported, run, *arguments)

    def cancel(self) -> None:
        # The caller is cancelled too when it is one of them: it is at its end, and awaits nothing more.
        self._scope.cancel()

    async def _own(self) -> None:
        with self._scope:
            async with self._trio.open_nursery() as self._nursery:
                for context, run, arguments in self._early:
                    context.run(self._nursery.start_soon, _reported, run, *arguments)
                self._early.clear()
                await self._trio.sleep_forever()


async def _reported(run: Callable[..., Awaitable[None]], *arguments: Any) -> None:
    try:
        await run(*arguments)
    except Exception:
        logger.exception("a task of the SDK broke")
