"""Locks that order events against waits for them: one of 256 buckets per (workspace, event name), first in the lock order.

Under READ COMMITTED an event and a wait that are written at the same time would miss each other and both commit. Whoever writes events
holds the bucket shared, whoever registers waits holds it exclusively; each looks for the other after it has the lock. Locks per match
value would fill the lock table; 256 buckets never do.
"""

from __future__ import annotations

from collections.abc import Iterable
from zlib import crc32

from engine.store.sql import Connection

BUCKETS = 256
# The first key of our two-key advisory locks, so that they do not meet those of other programs on the database.
LOCK_CLASS = 0x64757231

EventName = tuple[int, str]


def bucket_locks(*, shared: Iterable[EventName] = (), exclusive: Iterable[EventName] = ()) -> str:
    """Statements that lock the buckets of these (workspace id, event name) pairs, each once, in the stronger mode, in ascending order.

    A text without parameters, so that it can travel with BEGIN; nothing stands in it but numbers that are made here.
    """
    modes = {bucket_of(*name): "_shared" for name in shared}
    modes |= {bucket_of(*name): "" for name in exclusive}
    return "".join(f"SELECT pg_advisory_xact_lock{modes[bucket]}({LOCK_CLASS},{bucket});" for bucket in sorted(modes))


async def lock_event_buckets(conn: Connection, *, shared: Iterable[EventName] = (), exclusive: Iterable[EventName] = ()) -> None:
    """Lock these buckets, unless the transaction was opened with just that."""
    locks = bucket_locks(shared=shared, exclusive=exclusive)
    if locks and locks != conn.opening:
        await conn.execute_script(locks)


def bucket_of(workspace_id: int, event_name: str) -> int:
    return crc32(f"{workspace_id}/{event_name}".encode()) % BUCKETS
