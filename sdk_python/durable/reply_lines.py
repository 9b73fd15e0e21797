"""The lines of one streamed reply, between the invocations that end and the server that writes.

Knows which lines are out, which are not, and how many invocations still run. When the connection breaks, `close`
gives back what may not have arrived. Safe to use from any thread; it never waits itself.
"""

import threading
from collections.abc import Callable

from durable.wire import Ended


class ReplyLines:
    """`wake` is called, from any thread, when there is something to write after there was nothing."""

    def __init__(self, running_count: int, wake: Callable[[], None]) -> None:
        self._running_count = running_count
        self._wake = wake
        self._unsent: list[Ended] = []
        self._sent: list[Ended] = []
        self._is_closed = False
        self._lock = threading.Lock()

    def put(self, ended: Ended | None) -> bool:
        """An invocation has ended, with this line or, if None, with nothing to say. False: the reply is closed, and
        the line must travel another way.
        """
        with self._lock:
            self._running_count -= 1
            is_taken = not self._is_closed
            # Who has been woken and has not come yet finds all that gathered meanwhile.
            is_woken = bool(self._unsent) and self._running_count > 0
            if ended is not None and is_taken:
                self._unsent.append(ended)
        if not is_woken:
            self._wake()
        return is_taken

    def take(self) -> list[Ended]:
        """The lines to write now."""
        with self._lock:
            lines, self._unsent = self._unsent, []
            self._sent += lines
            return lines

    @property
    def is_complete(self) -> bool:
        """Whether every invocation has ended and every line was taken."""
        with self._lock:
            return self._running_count <= 0 and not self._unsent

    @property
    def has_running(self) -> bool:
        with self._lock:
            return self._running_count > 0

    def close(self) -> list[Ended]:
        """The connection broke: the lines that may be lost, those included that were written before. To say an end
        twice is harmless, since the second finds its generation over.
        """
        with self._lock:
            if self._is_closed:
                return []
            self._is_closed = True
            return [*self._sent, *self._unsent]
