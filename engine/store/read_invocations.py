"""Reads what a call must carry for leased runs: event, memo, retries and open waits. After the claim, outside its transaction's locks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from msgspec import UNSET, Raw

from engine.store.claim_runs import Lease
from engine.store.sql import Connection, Sql
from protocol.calls import Event, Invocation, MemoEntry, OpenWait, Retry

READ_LEASED_RUNS = Sql(
    "read_leased_runs",
    """
SELECT run.run_id, function.name AS function, app.serve_url, workspace.app, workspace.env, function.config,
       event.external_id, event.name, event.data, event.received_at,
       greatest(extract(epoch FROM live_run.due_at - clock_timestamp()), 0)::float8 AS lease_seconds
  FROM unnest($run_ids::uuid[], $generations::int[]) AS u (run_id, generation)
  JOIN run USING (run_id)
  JOIN live_run ON live_run.run_id = u.run_id AND live_run.generation = u.generation AND live_run.state IN ('leased', 'cancelled')
  JOIN event USING (event_id)
  JOIN function ON function.function_id = run.function_id
  JOIN workspace ON workspace.workspace_id = run.workspace_id
  LEFT JOIN app ON app.workspace_id = run.workspace_id""",
)
READ_MEMO = Sql(
    "read_memo",
    """
SELECT run_id, step_id, kind, position, data, error, is_abandoned
  FROM step WHERE run_id = ANY($run_ids::uuid[]) ORDER BY run_id, position""",
)
READ_OPEN = Sql(
    "read_open",
    """
SELECT run_id, step_id, kind, 0 AS attempt, 0::float8 AS in_seconds FROM wait WHERE run_id = ANY($run_ids::uuid[])
UNION ALL
SELECT run_id, step_id, NULL, attempt, greatest(extract(epoch FROM due_at - clock_timestamp()), 0)::float8
  FROM step_retry WHERE run_id = ANY($run_ids::uuid[])""",
)


@dataclass(frozen=True, slots=True)
class Handover:
    """An invocation with where it goes. `serve_url` is None when the app was never synced."""

    lease: Lease
    app: str
    env: str
    serve_url: str | None
    config: str
    invocation: Invocation


async def read_invocations(conn: Connection, leases: Sequence[Lease]) -> list[Handover]:
    """The invocations of these leases; none of a lease that is over already."""
    run_ids = [lease.run_id for lease in leases]
    generations = [lease.generation for lease in leases]
    rows = {row["run_id"]: row for row in await conn.fetch(READ_LEASED_RUNS, run_ids=run_ids, generations=generations)}
    memo: dict[UUID, list[MemoEntry]] = {}
    if with_memo := [lease.run_id for lease in leases if lease.position > 0]:
        for row in await conn.fetch(READ_MEMO, run_ids=with_memo):
            memo.setdefault(row["run_id"], []).append(_memo_entry(row))
    retries: dict[UUID, list[Retry]] = {}
    waiting: dict[UUID, list[OpenWait]] = {}
    # A first lease can have left nothing open.
    if again := [lease.run_id for lease in leases if lease.generation > 1]:
        for row in await conn.fetch(READ_OPEN, run_ids=again):
            if row["kind"] is None:
                retries.setdefault(row["run_id"], []).append(Retry(row["step_id"], row["attempt"], row["in_seconds"]))
            else:
                waiting.setdefault(row["run_id"], []).append(OpenWait(row["step_id"], row["kind"]))
    return [_handover(lease, rows[lease.run_id], memo, retries, waiting) for lease in leases if lease.run_id in rows]


def _handover(
    lease: Lease,
    row: Any,
    memo: dict[UUID, list[MemoEntry]],
    retries: dict[UUID, list[Retry]],
    waiting: dict[UUID, list[OpenWait]],
) -> Handover:
    invocation = Invocation(
        run_id=str(lease.run_id),
        generation=lease.generation,
        attempt=lease.attempt,
        function=row["function"],
        event=Event(row["external_id"], row["name"], Raw(row["data"].encode()), row["received_at"]),
        lease_seconds=row["lease_seconds"],
        steps=memo.get(lease.run_id, []),
        retries=retries.get(lease.run_id, []),
        waiting=waiting.get(lease.run_id, []),
    )
    return Handover(lease, row["app"], row["env"], row["serve_url"], row["config"], invocation)


def _memo_entry(row: Any) -> MemoEntry:
    return MemoEntry(
        row["step_id"],
        row["kind"],
        row["position"],
        data=UNSET if row["data"] is None else Raw(row["data"].encode()),
        error=UNSET if row["error"] is None else Raw(row["error"].encode()),
        abandoned=row["is_abandoned"],
    )
