"""Counts failed authentications per address and in all, so that guessing stays slow and does not cost database reads.

Those who show a good credential that is already in memory are never limited. It forgets after a minute.
"""

from __future__ import annotations

from collections import OrderedDict

import trio

FAILURES_PER_ADDRESS_MAX = 30
FAILURES_IN_ALL_MAX = 600
WINDOW_SECONDS = 60.0
ADDRESSES_MAX = 10_000


class FailureLimiter:
    """Fixed windows of a minute: simple, bounded in memory, and exact enough to slow a guesser down."""

    def __init__(self) -> None:
        self._window_ends_at = trio.current_time() + WINDOW_SECONDS
        self._failures: OrderedDict[str, int] = OrderedDict()
        self._failures_in_all = 0

    def count(self, address: str) -> None:
        """One more failure from this address."""
        self._turn_window()
        self._failures_in_all += 1
        self._failures[address] = self._failures.pop(address, 0) + 1
        if len(self._failures) > ADDRESSES_MAX:
            self._failures.popitem(last=False)

    def is_over(self, address: str) -> bool:
        """Whether this address, or all together, failed too often in this minute."""
        self._turn_window()
        return self._failures.get(address, 0) >= FAILURES_PER_ADDRESS_MAX or self._failures_in_all >= FAILURES_IN_ALL_MAX

    @property
    def seconds_left(self) -> int:
        """Until the window ends."""
        return max(1, int(self._window_ends_at - trio.current_time()) + 1)

    def _turn_window(self) -> None:
        now = trio.current_time()
        if now >= self._window_ends_at:
            self._window_ends_at = now + WINDOW_SECONDS
            self._failures.clear()
            self._failures_in_all = 0
