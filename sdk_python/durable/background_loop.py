"""An asyncio loop in a thread of its own, for servers that have none (WSGI).

Owns the thread: started at the first use, one per process (a fork starts its own), ended at the interpreter's end
after the work given by `drain_with` is done.
"""

import asyncio
import atexit
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class BackgroundLoop:
    """Safe to use from any thread."""

    def __init__(self, drain_with: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._drain_with = drain_with
        self._lock = threading.Lock()
        self._loop_of: tuple[int, asyncio.AbstractEventLoop, threading.Thread] | None = None

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run it on the loop; what it gives or raises."""
        return asyncio.run_coroutine_threadsafe(work, self._loop()).result()

    def stop(self) -> None:
        """Drain, and end the thread. The next `run` starts another."""
        with self._lock:
            loop_of, self._loop_of = self._loop_of, None
        # After a fork the thread is the parent's.
        if loop_of is None or loop_of[0] != os.getpid():
            return
        _, loop, thread = loop_of
        try:
            asyncio.run_coroutine_threadsafe(self._drain_with(), loop).result()
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            atexit.unregister(self.stop)

    def _loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop_of is None or self._loop_of[0] != os.getpid():
                # Not new_event_loop(): a policy (trio-asyncio's) may give loops that no thread but the maker's can run.
                loop = asyncio.SelectorEventLoop()
                thread = threading.Thread(target=_serve, args=(loop,), name="durable-loop", daemon=True)
                thread.start()
                self._loop_of = (os.getpid(), loop, thread)
                atexit.register(self.stop)
            return self._loop_of[1]


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        # Leaving the runner cancels what is left and closes the loop.
        runner.get_loop().run_forever()
