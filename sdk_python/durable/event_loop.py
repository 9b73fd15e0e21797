"""Which event loop runs here, as a key for what belongs to one loop: connections, tasks, events."""

import asyncio

import sniffio


def current_loop() -> object:
    """asyncio's loop or Trio's token: hashable, weakly referable, and the same for as long as the loop runs."""
    if sniffio.current_async_library() == "trio":
        import trio

        return trio.lowlevel.current_trio_token()
    return asyncio.get_running_loop()
