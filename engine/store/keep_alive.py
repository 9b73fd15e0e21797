"""What an open poll of an app does with the runs that the app executes: renews their leases, and looks for what the app should hear.

Only runs of the app's own workspace and of the generation that it names; anything else is not its run any more, and is not touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from engine.store.memo_entries import memo_entry
from engine.store.sql import Connection, Sql
from protocol.calls import MemoEntry
from protocol.limits import CALL_BYTES_MAX, REF_BYTES_MIN

# A lease that would hardly become longer is not written.
SLACK_OF_LEASE: Final = 1 / 6
SLACK_SECONDS_BOUNDED: Final = 0.25

# Never shorter: the app was told of the longer lease.
KEEP_ALIVE = Sql(
    "keep_alive",
    """
WITH asked AS (
  SELECT * FROM unnest($run_ids::uuid[], $generations::bigint[], $lease_seconds::float8[], $slack_seconds::float8[])
                AS u (run_id, generation, lease_seconds, slack_seconds)
), held AS (
  SELECT live_run.run_id, live_run.state, live_run.due_at
    FROM live_run JOIN asked ON live_run.run_id = asked.run_id AND live_run.generation = asked.generation
   WHERE live_run.workspace_id = $workspace_id AND live_run.state IN ('leased', 'cancelled')
), short AS (
  SELECT live_run.run_id, clock_timestamp() + make_interval(secs => asked.lease_seconds) AS due_at
    FROM live_run JOIN asked ON live_run.run_id = asked.run_id AND live_run.generation = asked.generation
   WHERE live_run.workspace_id = $workspace_id AND live_run.state IN ('leased', 'cancelled')
     AND live_run.due_at < clock_timestamp() + make_interval(secs => asked.lease_seconds - asked.slack_seconds)
   ORDER BY live_run.run_id FOR UPDATE OF live_run
), kept AS (
  UPDATE live_run SET due_at = short.due_at FROM short
   WHERE live_run.run_id = short.run_id AND live_run.due_at < short.due_at
  RETURNING live_run.run_id, live_run.due_at
)
SELECT held.run_id, held.state,
       greatest(extract(epoch FROM coalesce(kept.due_at, held.due_at) - clock_timestamp()), 0)::float8 AS lease_seconds
  FROM held LEFT JOIN kept USING (run_id)""",
)
# What the app wrote itself it knows, or will from the answer to its report: only what came to a run from outside is news. An
# invocation whose end the app reported is over for the app too.
FIND_RUN_NEWS = Sql(
    "find_run_news",
    """
SELECT u.run_id,
       CASE WHEN live_run.run_id IS NULL
            THEN CASE WHEN EXISTS (SELECT 1 FROM invocation
                                    WHERE invocation.run_id = u.run_id AND invocation.generation = u.generation
                                      AND invocation.outcome IN ('completed', 'failed', 'parked', 'nothing_planned'))
                      THEN 'over' ELSE 'stale' END
            WHEN live_run.state = 'cancelled' THEN 'cancelled'
            WHEN EXISTS (SELECT 1 FROM step WHERE step.run_id = u.run_id AND step.position > u.known
                            AND step.kind IN ('sleep', 'wait_for_event') AND NOT step.is_abandoned)
            THEN 'resolved' ELSE 'own' END AS what,
       coalesce(live_run.position, 0) AS position
  FROM unnest($run_ids::uuid[], $generations::bigint[], $known::int[]) AS u (run_id, generation, known)
  LEFT JOIN live_run ON live_run.run_id = u.run_id AND live_run.generation = u.generation
                    AND live_run.workspace_id = $workspace_id AND live_run.state IN ('leased', 'cancelled')
 WHERE live_run.run_id IS NULL OR live_run.state = 'cancelled' OR live_run.position > u.known""",
)
READ_RUN_NEWS = Sql(
    "read_run_news",
    """
WITH offer AS (
  SELECT coalesce((SELECT (manifest::json #>> '{capabilities,refs}')::boolean FROM app WHERE workspace_id = $workspace_id), false) AS has_refs
), entry AS (
  SELECT step.run_id, step.step_id, step.kind, step.position, step.error, step.is_abandoned, octet_length(step.data) AS bytes,
         CASE WHEN (SELECT has_refs FROM offer) AND octet_length(step.data) >= $ref_bytes_min THEN NULL ELSE step.data END AS data
    FROM step
    JOIN unnest($run_ids::uuid[], $known::int[]) AS u (run_id, known) ON step.run_id = u.run_id AND step.position > u.known
    JOIN run ON run.run_id = step.run_id AND run.workspace_id = $workspace_id
), added AS (
  SELECT *, row_number() OVER places AS place,
         sum(coalesce(octet_length(data), 0) + coalesce(octet_length(error), 0) + octet_length(step_id) + 200) OVER places AS bytes_so_far
    FROM entry WINDOW places AS (ORDER BY run_id, position)
)
SELECT run_id, step_id, kind, position, data, error, is_abandoned, bytes FROM added
 WHERE place = 1 OR bytes_so_far <= $bytes_max ORDER BY run_id, position""",
)


@dataclass(frozen=True, slots=True)
class HeldRun:
    """A run that an app says it executes. `lease_seconds_max` bounds its lease from now on; None: nothing does."""

    run_id: UUID
    generation: int
    known: int
    lease_seconds_max: float | None = None


@dataclass(frozen=True, slots=True)
class KeptLease:
    """The lease of a run that the app holds; of a cancelled run it only keeps its slots until the app has stopped."""

    lease_seconds: float
    is_cancelled: bool


@dataclass(frozen=True, slots=True)
class RunNews:
    """What became of the runs that are not as the app knows them. `over`: the app ended the invocation itself; `own`: the run
    moved to this position by the app's own reports only.
    """

    stale: set[UUID]
    cancelled: set[UUID]
    resolved: set[UUID]
    over: set[UUID]
    own: dict[UUID, int]

    @property
    def is_for_app(self) -> bool:
        """Whether the app should hear of it now."""
        return bool(self.stale or self.cancelled or self.resolved)


async def keep_alive(conn: Connection, workspace_id: int, runs: Sequence[HeldRun], lease_seconds: float) -> dict[UUID, KeptLease]:
    """Renew the leases of these runs; those that the app still holds."""
    if not runs:
        return {}
    wanted_seconds = [
        lease_seconds if run.lease_seconds_max is None else max(min(lease_seconds, run.lease_seconds_max), 0.0) for run in runs
    ]
    rows = await conn.fetch(
        KEEP_ALIVE,
        run_ids=[run.run_id for run in runs],
        generations=[run.generation for run in runs],
        lease_seconds=wanted_seconds,
        slack_seconds=[
            lease_seconds * SLACK_OF_LEASE if wanted == lease_seconds else SLACK_SECONDS_BOUNDED for wanted in wanted_seconds
        ],
        workspace_id=workspace_id,
    )
    return {row["run_id"]: KeptLease(row["lease_seconds"], row["state"] == "cancelled") for row in rows}


async def find_run_news(conn: Connection, workspace_id: int, runs: Sequence[HeldRun]) -> RunNews:
    """What the app does not know of these runs; by index, and nothing is read of runs that stand as they stood."""
    found = RunNews(set(), set(), set(), set(), {})
    if not runs:
        return found
    rows = await conn.fetch(
        FIND_RUN_NEWS,
        run_ids=[run.run_id for run in runs],
        generations=[run.generation for run in runs],
        known=[run.known for run in runs],
        workspace_id=workspace_id,
    )
    kinds = {"stale": found.stale, "cancelled": found.cancelled, "resolved": found.resolved, "over": found.over}
    for row in rows:
        if row["what"] == "own":
            found.own[row["run_id"]] = row["position"]
        else:
            kinds[row["what"]].add(row["run_id"])
    return found


async def read_run_news(conn: Connection, workspace_id: int, runs: Sequence[HeldRun]) -> dict[UUID, list[MemoEntry]]:
    """The memo of these runs beyond what the app knows, in commit order: what fits into one answer, at least one entry."""
    resolved: dict[UUID, list[MemoEntry]] = {}
    # Data is left out only for an app that takes references.
    rows = await conn.fetch(
        READ_RUN_NEWS,
        run_ids=[run.run_id for run in runs],
        known=[run.known for run in runs],
        workspace_id=workspace_id,
        ref_bytes_min=REF_BYTES_MIN,
        bytes_max=CALL_BYTES_MAX,
    )
    for row in rows:
        resolved.setdefault(row["run_id"], []).append(memo_entry(row, has_refs=True))
    return resolved
