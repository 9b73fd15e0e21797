"""Remembers the ids of verified messages for ten minutes, so that a recorded message can not be sent again.

Only verified ids come in, so strangers can not fill it. It is bounded: above that the oldest minute is forgotten early, which is
logged; messages may be repeated safely by contract, so that costs a defence in depth and no correctness.
"""

from __future__ import annotations

from collections import deque

import structlog
import trio

REMEMBER_SECONDS = 600.0
BUCKET_SECONDS = 60.0
IDS_MAX = 1_000_000

log = structlog.get_logger(__name__)


class ReplayMemory:
    """Sets of 64-bit hashes, one a minute. Python's own hash is keyed per process, so collisions can not be prepared."""

    def __init__(self, ids_max: int = IDS_MAX) -> None:
        self._ids_max = ids_max
        self._buckets: deque[tuple[float, set[int]]] = deque()
        self._count = 0

    def is_new(self, workspace: str, message_id: str) -> bool:
        """Whether this id was not seen in the last ten minutes; from now on it was."""
        now = trio.current_time()
        hashed = hash((workspace, message_id))
        self._forget(now)
        if any(hashed in ids for _, ids in self._buckets):
            return False
        if not self._buckets or now - self._buckets[-1][0] >= BUCKET_SECONDS:
            self._buckets.append((now, set()))
        self._buckets[-1][1].add(hashed)
        self._count += 1
        return True

    def _forget(self, now: float) -> None:
        # A bucket holds ids of a whole minute: the youngest of them must be ten minutes old.
        while self._buckets and now - self._buckets[0][0] > REMEMBER_SECONDS + BUCKET_SECONDS:
            self._count -= len(self._buckets.popleft()[1])
        while self._count >= self._ids_max:
            forgotten = self._buckets.popleft()[1]
            self._count -= len(forgotten)
            log.warning("replay_memory_full", forgotten=len(forgotten))
