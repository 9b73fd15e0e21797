"""Remembers the ids of verified calls for ten minutes, so that a recorded call can not be sent again.

Only ids of verified calls come in, so a stranger can not fill it. It is bounded: beyond that the oldest are
forgotten early. It is memory of this process; several workers of one server each have their own.
"""

import threading
import time
from typing import Final

REMEMBER_SECONDS: Final = 600.0
# About 100 bytes each.
IDS_MAX: Final = 300_000


class ReplayMemory:
    """Safe to use from any thread."""

    def __init__(self, ids_max: int = IDS_MAX) -> None:
        self._ids_max = ids_max
        # In order of arrival, which is the order of age: dicts keep it.
        self._seen_at: dict[int, float] = {}
        self._lock = threading.Lock()

    def is_new(self, message_id: str) -> bool:
        """Whether this id was not seen in the last ten minutes. From now on it was."""
        # Python's hash of texts is keyed per process, so nobody can prepare two ids with the same one.
        hashed = hash(message_id)
        now = time.monotonic()
        with self._lock:
            self._forget(now)
            if hashed in self._seen_at:
                return False
            self._seen_at[hashed] = now
            return True

    def _forget(self, now: float) -> None:
        while self._seen_at:
            oldest = next(iter(self._seen_at))
            if now - self._seen_at[oldest] <= REMEMBER_SECONDS and len(self._seen_at) < self._ids_max:
                return
            del self._seen_at[oldest]
