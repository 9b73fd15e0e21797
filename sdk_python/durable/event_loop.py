"""Which event loop runs here, as a key for what belongs to one loop: connections, tasks, events."""

import asyncio
from collections.abc import Callable
from typing import Any

import sniffio


def current_loop() -> object:
    """asyncio's loop or Trio's token: hashable, weakly referable, and the same for as long as the loop runs."""
    if sniffio.current_async_library() == "trio":
        import trio

        return trio.lowlevel.current_trio_token()
    return asyncio.get_running_loop()


def call_soon_on(loop: Any) -> Callable[..., object]:
    """`call_soon(call, *arguments)` for any thread: calls it on this loop. RuntimeError when the loop has ended."""
    is_asyncio = isinstance(loop, asyncio.AbstractEventLoop)
    call_soon: Callable[..., object] = loop.call_soon_threadsafe if is_asyncio else loop.run_sync_soon
    return call_soon
