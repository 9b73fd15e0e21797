"""Claims due runs for an engine: in one transaction the lanes are visited in turn, limits are taken, and leases are given.

What does not get a slot parks at the key that is full, so blocked work is never scanned past again. The claim decides nothing about
limits itself: `core.admit` does. What is leased is read in the same transaction, most of it in the same statement.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from engine.core.admit import Admission, Candidate, admit
from engine.store.crash_points import crash_point
from engine.store.lease import Lease
from engine.store.read_invocations import Handover, LeasedRun, fill_invocations, leased_run, read_invocations
from engine.store.release_slots import add_held, lock_keys, promote
from engine.store.sql import Connection, Sql

LANES_PER_CLAIM_MAX = 64

# The lanes with ready runs are found by hopping along the index, so a lane costs the same whether it holds ten runs or a million. What
# is asked of each is asked in its turn: a join would visit all lanes, and in an order of its own.
# Runs without limits are leased and read at once; the others are locked, and `admit` decides about them. The arrays keep the planner at
# looking each run up, whatever it thinks of their number.
CLAIM_DUE_RUNS = Sql(
    "claim_due_runs",
    """
WITH RECURSIVE lane AS (
  (SELECT function_id FROM live_run WHERE state = 'ready' AND function_id > $after_lane ORDER BY function_id LIMIT 1)
  UNION ALL
  SELECT following.function_id
    FROM lane CROSS JOIN LATERAL (
         SELECT function_id FROM live_run WHERE state = 'ready' AND function_id > lane.function_id
          ORDER BY function_id LIMIT 1) AS following
), open_lane AS MATERIALIZED (
  SELECT function_id FROM lane
   WHERE NOT EXISTS (SELECT FROM lane_hold WHERE lane_hold.function_id = lane.function_id
                                            AND lane_hold.held_until > clock_timestamp())
     AND (SELECT workspace_id FROM function WHERE function.function_id = lane.function_id) <> ALL ($full_workspaces::int[])
   LIMIT $lanes_max
), due AS MATERIALIZED (
  SELECT due.run_id, due.function_id, due.limit_key_ids
    FROM open_lane CROSS JOIN LATERAL (
         SELECT run_id, function_id, limit_key_ids FROM live_run
          WHERE state = 'ready' AND function_id = open_lane.function_id
          ORDER BY order_at, run_id
          LIMIT (SELECT greatest(1, ceil($runs_max::float8 / count(*)))::bigint FROM open_lane)
          FOR UPDATE SKIP LOCKED) AS due
   LIMIT $runs_max
), leased AS (
  UPDATE live_run
     SET state = 'leased', generation = generation + 1, engine_id = $engine_id, leased_at = clock_timestamp(),
         due_at = clock_timestamp() + make_interval(secs => $lease_seconds)
   WHERE run_id = ANY(ARRAY(SELECT run_id FROM due WHERE limit_key_ids IS NULL))
  RETURNING run_id, workspace_id, function_id, generation, position, attempt, interruptions, has_open
)
SELECT leased.run_id, leased.function_id, NULL::bigint[] AS limit_key_ids, leased.workspace_id, leased.generation, leased.position,
       leased.attempt, leased.interruptions, leased.has_open, event.external_id, event.name, event.data, event.received_at,
       workspace.sync_version
  FROM leased
  JOIN run USING (run_id)
  JOIN event USING (event_id)
  JOIN workspace ON workspace.workspace_id = leased.workspace_id
UNION ALL
SELECT run_id, function_id, limit_key_ids, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL
  FROM due WHERE limit_key_ids IS NOT NULL""",
)
READ_RESERVATIONS = Sql("read_reservations", "SELECT run_id, limit_key_id FROM slot WHERE run_id = ANY($run_ids::uuid[])")
PARK_RUNS = Sql(
    "park_runs",
    """
WITH returned AS (
  DELETE FROM slot WHERE run_id = ANY($run_ids::uuid[]) RETURNING limit_key_id
), parked AS (
  UPDATE live_run SET state = 'parked', parked_for = 'limit', parked_key_id = u.key_id
    FROM unnest($run_ids::uuid[], $key_ids::bigint[]) AS u (run_id, key_id)
   WHERE live_run.run_id = u.run_id
)
SELECT limit_key_id FROM returned""",
)
TAKE_SLOTS = Sql(
    "take_slots",
    """
INSERT INTO slot (run_id, limit_key_id, generation)
SELECT u.run_id, u.key_id, live_run.generation
  FROM unnest($run_ids::uuid[], $key_ids::bigint[]) AS u (run_id, key_id) JOIN live_run USING (run_id)""",
)
USE_RESERVATIONS = Sql(
    "use_reservations",
    """
UPDATE slot SET generation = live_run.generation
  FROM live_run WHERE slot.run_id = live_run.run_id AND live_run.run_id = ANY($run_ids::uuid[]) AND slot.generation IS NULL""",
)
LEASE_RUNS = Sql(
    "lease_runs",
    """
UPDATE live_run
   SET state = 'leased', generation = generation + 1, engine_id = $engine_id, leased_at = clock_timestamp(),
       due_at = clock_timestamp() + make_interval(secs => $lease_seconds)
 WHERE run_id = ANY($run_ids::uuid[])
RETURNING run_id, workspace_id, function_id, generation, position, attempt, interruptions""",
)


@dataclass(frozen=True, slots=True)
class Claimed:
    """The leases given, the lane after which the next claim goes on (0: from the first), and whether more may be due.

    `handovers`: what the calls of the leases carry; each of them must be started after the commit.
    """

    leases: tuple[Lease, ...]
    last_lane: int
    found: int
    has_due_runs: bool = False
    owes_promotion: bool = False
    handovers: list[Handover] = field(default_factory=list)


async def claim_runs(
    conn: Connection,
    engine_id: UUID,
    runs_max: int,
    lease_seconds: float,
    after_lane: int = 0,
    full_workspaces: Sequence[int] = (),
) -> Claimed:
    """Lease up to `runs_max` due runs, an equal part from each lane that has any; none of `full_workspaces`."""
    bounds = {"lanes_max": LANES_PER_CLAIM_MAX, "runs_max": runs_max, "full_workspaces": list(full_workspaces)}
    lease = {"engine_id": engine_id, "lease_seconds": lease_seconds}
    due = await conn.fetch(CLAIM_DUE_RUNS, after_lane=after_lane, **bounds, **lease)
    if not due and after_lane:
        due = await conn.fetch(CLAIM_DUE_RUNS, after_lane=0, **bounds, **lease)
    if not due:
        return Claimed((), 0, 0)
    runs: list[LeasedRun] = []
    limited: list[Any] = []
    versions: dict[int, int] = {}
    for row in due:
        if row["generation"] is None:
            limited.append(row)
        else:
            versions[row["workspace_id"]] = row["sync_version"]
            runs.append(leased_run(_lease(row), row, lease_seconds))
    handovers = await fill_invocations(conn, runs, versions)
    has_due_runs, owes_promotion = False, False
    if limited:
        admission, has_due_runs, owes_promotion = await _admit(conn, limited)
        handovers += await _lease_admitted(conn, admission, engine_id, lease_seconds)
    lanes = {row["function_id"] for row in due}
    # Also when there was no room for more runs: the lanes behind would otherwise never have their turn in a full engine.
    last_lane = max(lanes) if len(lanes) >= LANES_PER_CLAIM_MAX or len(due) >= runs_max else 0
    crash_point("claim_before_commit")
    leases = tuple(handover.lease for handover in handovers)
    return Claimed(leases, last_lane, len(due), has_due_runs, owes_promotion, handovers)


async def _lease_admitted(conn: Connection, admission: Admission, engine_id: UUID, lease_seconds: float) -> list[Handover]:
    """Lease the runs that have all their slots; what their calls carry."""
    if not admission.admitted:
        return []
    run_ids = list(admission.admitted)
    rows = await conn.fetch(LEASE_RUNS, run_ids=run_ids, engine_id=engine_id, lease_seconds=lease_seconds)
    if admission.taken:
        await conn.execute(
            TAKE_SLOTS,
            run_ids=[run_id for run_id, _ in admission.taken],
            key_ids=[key_id for _, key_id in admission.taken],
        )
    await conn.execute(USE_RESERVATIONS, run_ids=run_ids)
    return await read_invocations(conn, [_lease(row) for row in rows])


def _lease(row: Any) -> Lease:
    return Lease(
        row["run_id"],
        row["workspace_id"],
        row["function_id"],
        row["generation"],
        row["position"],
        row["attempt"],
        row["interruptions"],
    )


async def _admit(conn: Connection, limited: Sequence[Any]) -> tuple[Admission, bool, bool]:
    """Take slots for the runs that get all of theirs, park the others; whether that made runs due or owes a promotion."""
    reservations: dict[UUID, set[int]] = {}
    for row in await conn.fetch(READ_RESERVATIONS, run_ids=[row["run_id"] for row in limited]):
        reservations.setdefault(row["run_id"], set()).add(row["limit_key_id"])
    keys = await lock_keys(conn, {key_id for row in limited for key_id in row["limit_key_ids"]})
    candidates = [
        Candidate(row["run_id"], tuple(row["limit_key_ids"]), frozenset(reservations.get(row["run_id"], ()))) for row in limited
    ]
    admission = admit(candidates, {key_id: key.free for key_id, key in keys.items()})
    added: Counter[int] = Counter(key_id for _, key_id in admission.taken)
    returned: list[int] = []
    if admission.parked:
        rows = await conn.fetch(
            PARK_RUNS,
            run_ids=[run_id for run_id, _ in admission.parked],
            key_ids=[key_id for _, key_id in admission.parked],
        )
        returned = [row["limit_key_id"] for row in rows]
        added.subtract(returned)
    await add_held(conn, {key_id: count for key_id, count in added.items() if count})
    for key_id, count in added.items():
        keys[key_id].held += count
    if not returned:
        return admission, False, False
    # A run that parked gave its reserved slots back; they go to the next who wait for them.
    has_due_runs, owes_promotion = await promote(conn, {key_id: keys[key_id] for key_id in set(returned)})
    return admission, has_due_runs, owes_promotion
