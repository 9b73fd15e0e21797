"""Locks that order events against waits for them: one of 256 buckets per (workspace, event name), first in the lock order.

Under READ COMMITTED an event and a wait that are written at the same time would miss each other and both commit. Whoever writes events
holds the bucket shared, whoever registers waits holds it exclusively; each looks for the other after it has the lock. Locks per match
value would fill the lock table; 256 buckets never do.
"""

from __future__ import annotations

from collections.abc import Iterable
from zlib import crc32

from engine.store.sql import Connection, Sql

BUCKETS = 256
# The first key of our two-key advisory locks, so that they do not meet those of other programs on the database.
LOCK_CLASS = 0x64757231

LOCK_BUCKETS = Sql(
    "lock_event_buckets",
    """
SELECT CASE WHEN wanted.is_exclusive
            THEN pg_advisory_xact_lock($lock_class, wanted.bucket)
            ELSE pg_advisory_xact_lock_shared($lock_class, wanted.bucket) END
  FROM (SELECT * FROM unnest($buckets::int[], $exclusive::bool[]) AS u (bucket, is_exclusive) ORDER BY bucket) AS wanted""",
)

EventName = tuple[int, str]


async def lock_event_buckets(conn: Connection, *, shared: Iterable[EventName] = (), exclusive: Iterable[EventName] = ()) -> None:
    """Lock the buckets of these (workspace id, event name) pairs, each once, in the stronger mode, in ascending order."""
    modes = {bucket_of(*name): False for name in shared}
    modes |= {bucket_of(*name): True for name in exclusive}
    if modes:
        buckets = sorted(modes)
        await conn.fetch(
            LOCK_BUCKETS,
            lock_class=LOCK_CLASS,
            buckets=buckets,
            exclusive=[modes[bucket] for bucket in buckets],
        )


def bucket_of(workspace_id: int, event_name: str) -> int:
    return crc32(f"{workspace_id}/{event_name}".encode()) % BUCKETS
