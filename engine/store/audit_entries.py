"""The audit log: who changed what. Entries are only ever added, in the transaction of the change where there is one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Concatenate, ParamSpec, TypeVar

from engine.store.sql import Connection, Sql

P = ParamSpec("P")
T = TypeVar("T")

APPEND_AUDIT_ENTRY = Sql(
    "append_audit_entry",
    """
INSERT INTO audit_entry (workspace_id, actor, action, object) VALUES ($workspace_id, $actor, $action, $object)""",
)


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """`actor` did `action` to `object`, for example `token:ops`, `run.cancel`, a run id. No workspace: the whole engine."""

    actor: str
    action: str
    object: str
    workspace_id: int | None = None


async def append_audit_entry(conn: Connection, entry: AuditEntry) -> None:
    """Add one entry."""
    await conn.execute(
        APPEND_AUDIT_ENTRY,
        workspace_id=entry.workspace_id,
        actor=entry.actor,
        action=entry.action,
        object=entry.object,
    )


async def with_audit_entry(
    conn: Connection,
    entry: AuditEntry,
    is_change: Callable[[T], bool],
    work: Callable[Concatenate[Connection, P], Awaitable[T]],
    *args: P.args,
    **kwargs: P.kwargs,
) -> T:
    """Do `work` and add the entry if its result is a change, both or neither."""
    result = await work(conn, *args, **kwargs)
    if is_change(result):
        await append_audit_entry(conn, entry)
    return result
