"""Reads what a call must carry for leased runs: memo, retries and open waits; what is the same for all runs of a function is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
from msgspec import Raw

from engine.store.app_offer import AppOffer
from engine.store.function_cache import KnownWorkspace
from engine.store.know_functions import know_workspaces
from engine.store.lease import Lease
from engine.store.memo_entries import by_reference, memo_entry
from engine.store.sql import Connection, Sql
from protocol.calls import Event, Invocation, MemoEntry, OpenWait, Retry
from protocol.limits import REF_BYTES_MIN
from protocol.manifest import FunctionConfig

READ_LEASED_RUNS = Sql(
    "read_leased_runs",
    """
SELECT run.run_id, event.external_id, event.name, event.data, event.received_at, live_run.has_open, workspace.sync_version,
       greatest(extract(epoch FROM live_run.due_at - clock_timestamp()), 0)::float8 AS lease_seconds
  FROM unnest($run_ids::uuid[], $generations::int[]) AS u (run_id, generation)
  JOIN run USING (run_id)
  JOIN live_run ON live_run.run_id = u.run_id AND live_run.generation = u.generation AND live_run.state IN ('leased', 'cancelled')
  JOIN event USING (event_id)
  JOIN workspace ON workspace.workspace_id = run.workspace_id""",
)
# The length of a value is known without reading it; one that travels by reference stays where it is.
READ_MEMO = Sql(
    "read_memo",
    """
SELECT step.run_id, step.step_id, step.kind, step.position, step.error, step.is_abandoned, octet_length(step.data) AS bytes,
       CASE WHEN u.has_refs AND octet_length(step.data) >= $ref_bytes_min::int THEN NULL ELSE step.data END AS data
  FROM unnest($run_ids::uuid[], $has_refs::bool[]) AS u (run_id, has_refs)
  JOIN step ON step.run_id = u.run_id
 ORDER BY step.run_id, step.position""",
)
READ_OPEN = Sql(
    "read_open",
    """
SELECT run_id, step_id, kind, 0 AS attempt, 0::float8 AS in_seconds FROM wait WHERE run_id = ANY($run_ids::uuid[])
UNION ALL
SELECT run_id, step_id, NULL, attempt, greatest(extract(epoch FROM due_at - clock_timestamp()), 0)::float8
  FROM step_retry WHERE run_id = ANY($run_ids::uuid[])""",
)

# What an invocation has around its event and memo, and an entry around its value: ids, names, times, JSON.
INVOCATION_BYTES = 512
ENTRY_BYTES = 160
# What a call has around its invocations; and the estimate of a body may be a little too low.
CALL_MARGIN_BYTES = 16 << 10


class Handover(msgspec.Struct, frozen=True):
    """An invocation with where it goes. `offer` is None when the app was never synced; `size_bytes` is about what it has encoded."""

    lease: Lease
    app: str
    env: str
    offer: AppOffer | None
    config: FunctionConfig
    invocation: Invocation
    size_bytes: int


class LeasedRun(msgspec.Struct, frozen=True):
    """A lease with the event that started its run, and how long it lasts."""

    lease: Lease
    visible_id: str
    event_name: str
    data: str
    received_at: datetime
    lease_seconds: float
    has_open: bool = False


async def read_invocations(conn: Connection, leases: Sequence[Lease]) -> list[Handover]:
    """The invocations of these leases; none of a lease that is over already."""
    lease_of = {lease.run_id: lease for lease in leases}
    rows = await conn.fetch(
        READ_LEASED_RUNS, run_ids=list(lease_of), generations=[lease.generation for lease in lease_of.values()]
    )
    versions = {lease_of[row["run_id"]].workspace_id: row["sync_version"] for row in rows}
    return await fill_invocations(
        conn, [leased_run(lease_of[row["run_id"]], row, row["lease_seconds"]) for row in rows], versions
    )


async def fill_invocations(conn: Connection, runs: Sequence[LeasedRun], versions: Mapping[int, int]) -> list[Handover]:
    """The invocations of leased runs, whose workspaces are at these versions or later ones."""
    known = await know_workspaces(conn, versions)
    memo: dict[UUID, list[Any]] = {}
    if with_memo := [run.lease for run in runs if run.lease.position > 0]:
        rows = await conn.fetch(
            READ_MEMO,
            run_ids=[lease.run_id for lease in with_memo],
            has_refs=[_has_refs(known[lease.workspace_id]) for lease in with_memo],
            ref_bytes_min=REF_BYTES_MIN,
        )
        for row in rows:
            memo.setdefault(row["run_id"], []).append(row)
    retries: dict[UUID, list[Retry]] = {}
    waiting: dict[UUID, list[OpenWait]] = {}
    if with_open := [run.lease.run_id for run in runs if run.has_open]:
        for row in await conn.fetch(READ_OPEN, run_ids=with_open):
            if row["kind"] is None:
                retries.setdefault(row["run_id"], []).append(Retry(row["step_id"], row["attempt"], row["in_seconds"]))
            else:
                waiting.setdefault(row["run_id"], []).append(OpenWait(row["step_id"], row["kind"]))
    return [
        make_handover(
            run,
            known[run.lease.workspace_id],
            memo.get(run.lease.run_id, ()),
            retries.get(run.lease.run_id, []),
            waiting.get(run.lease.run_id, []),
        )
        for run in runs
    ]


def leased_run(lease: Lease, row: Any, lease_seconds: float) -> LeasedRun:
    """The leased run of a row with its event."""
    return LeasedRun(
        lease, row["external_id"], row["name"], row["data"], row["received_at"], lease_seconds, has_open=row["has_open"]
    )


def make_handover(
    run: LeasedRun,
    workspace: KnownWorkspace,
    memo: Sequence[Any] = (),
    retries: Sequence[Retry] = (),
    waiting: Sequence[OpenWait] = (),
) -> Handover:
    """The handover of a leased run with the rows of its memo and what is open in it."""
    lease = run.lease
    function = workspace.functions[lease.function_id]
    data = run.data.encode()
    size_bytes = INVOCATION_BYTES + len(data) + ENTRY_BYTES * (len(memo) + len(retries) + len(waiting))
    steps, memo_bytes = _memo(lease.run_id, memo, workspace.offer, size_bytes) if memo else ([], 0)
    invocation = Invocation(
        str(lease.run_id),
        lease.generation,
        lease.attempt,
        function.name,
        Event(run.visible_id, run.event_name, Raw(data), run.received_at),
        run.lease_seconds,
        steps,
        list(retries),
        list(waiting),
    )
    return Handover(lease, workspace.app, workspace.env, workspace.offer, function.config, invocation, size_bytes + memo_bytes)


def _memo(run_id: UUID, rows: Sequence[Any], offer: AppOffer | None, other_bytes: int) -> tuple[list[MemoEntry], int]:
    """The entries of a memo and the bytes of their values: where the app can fetch, the largest stay behind until the call fits."""
    has_refs = offer is not None and offer.has_refs
    entries = [memo_entry(row, has_refs) for row in rows]
    sizes = [(row["bytes"] or 0) if row["data"] is not None else 0 for row in rows]
    total = sum(sizes) + sum(len(row["error"]) for row in rows if row["error"] is not None)
    if offer is not None and has_refs and total + other_bytes > (room_bytes := offer.max_body_bytes - CALL_MARGIN_BYTES):
        for place in sorted(range(len(entries)), key=sizes.__getitem__, reverse=True):
            if total + other_bytes <= room_bytes or not sizes[place]:
                break
            entries[place] = by_reference(run_id, entries[place])
            total -= sizes[place]
    return entries, total


def _has_refs(workspace: KnownWorkspace) -> bool:
    return workspace.offer is not None and workspace.offer.has_refs
