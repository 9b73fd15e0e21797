"""The lease of a run by the app's own monotonic clock: how long bodies may be started, and when to ask for news.

Knows only what the call and the answers said; the engine may hold the lease longer (it does while the call is open),
never shorter.
"""

import heapq
from typing import Final

LEASE_MARGIN_SECONDS: Final = 2.0
"""With this much or less of the lease left no body is started (protocol section 7.5)."""

NEWS_PAUSE_SECONDS_MIN: Final = 1.0
NEWS_SECONDS_MIN: Final = 0.05
"""A sleep that ends beside a running body is asked for this much after its time, for clocks differ a little."""


class Lease:
    """The end of the lease as far as it is known here."""

    def __init__(self, received_at: float, seconds: float) -> None:
        self._seconds = seconds
        self._ends_at = received_at + seconds
        # A short lease that the engine has just confirmed is enough for one start, or bodies would never begin.
        self._is_fresh = False
        # When waits that were reported here are over by this clock.
        self._wait_ends: list[float] = []
        self._asked_at = received_at

    def allows_start(self, now: float) -> bool:
        return self._is_fresh or self._ends_at - now > LEASE_MARGIN_SECONDS

    def note_start(self) -> None:
        self._is_fresh = False

    def renew(self, sent_at: float, seconds: float | None) -> None:
        """An `ok` to what was sent at `sent_at`. Counted from there, because the answer took its time."""
        if seconds is not None:
            self._seconds = seconds
            self._ends_at = sent_at + seconds
        self._is_fresh = True

    def checkpoint_deadline(self, now: float) -> float:
        """Until when a checkpoint is worth another try: at least the length of a lease."""
        return max(self._ends_at, now + max(self._seconds, LEASE_MARGIN_SECONDS))

    # News of waits, while a body keeps the invocation alive.

    def note_wait(self, now: float, seconds: float) -> None:
        heapq.heappush(self._wait_ends, now + max(seconds, 0) + NEWS_SECONDS_MIN)

    def note_asked(self, now: float) -> None:
        self._asked_at = now
        while self._wait_ends and self._wait_ends[0] <= now:
            heapq.heappop(self._wait_ends)

    @property
    def news_due_at(self) -> float:
        """When to ask the engine what became of the waits: at the end of one, and every third of the lease."""
        regularly_at = self._asked_at + max(self._seconds / 3, NEWS_PAUSE_SECONDS_MIN)
        return min(regularly_at, self._wait_ends[0]) if self._wait_ends else regularly_at
