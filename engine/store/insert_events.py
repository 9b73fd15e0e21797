"""Writes new events, what was decided for each, and the runs that start, in one statement: nothing of it if the decisions are out of date.

With room for them, runs are leased in the same statement that creates them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

import msgspec

from engine.core.ids import uuid7_tails
from engine.store.create_runs import Decision
from engine.store.function_cache import KnownWorkspace
from engine.store.handover_room import HandoverRoom
from engine.store.sql import Connection, Sql

if TYPE_CHECKING:
    from engine.store.append_events import NewEvent

# Ids are claimed sorted, so that two transactions with the same ids wait for each other in one order. One instant counts for the whole
# group, a microsecond further with each event, so that received_at, the run's place in its lane and its id all keep their order; ids of
# runs begin with the database's clock, so that runs of two engines sort as they came. A run is handed over only if none stands
# before it in its lane: that look is for the order alone, two engines at once may both hand over.
INSERT_EVENTS = Sql(
    "insert_events",
    """
WITH up_to_date AS MATERIALIZED (
  SELECT instant, lpad(to_hex(floor(extract(epoch FROM instant) * 1000)::bigint), 12, '0') AS id_head
    FROM clock_timestamp() AS instant
   WHERE NOT EXISTS (SELECT FROM unnest($known_workspace_ids::int[], $sync_versions::bigint[]) AS u (workspace_id, sync_version)
                       JOIN workspace USING (workspace_id) WHERE workspace.sync_version <> u.sync_version)
), claimed AS (
  INSERT INTO event_dedup (workspace_id, scope, external_id, event_id, body_sha256, expires_at)
  SELECT workspace_id, scope, external_id, event_id, body_sha256, instant + interval '24 hours'
    FROM up_to_date CROSS JOIN unnest($named_workspace_ids::int[], $scopes::text[], $external_ids::text[], $named_event_ids::uuid[],
                                      $body_sha256s::bytea[])
         WITH ORDINALITY AS u (workspace_id, scope, external_id, event_id, body_sha256, ordinal)
   ORDER BY workspace_id, scope, external_id, ordinal
  ON CONFLICT DO NOTHING
  RETURNING event_id
), fresh AS MATERIALIZED (
  SELECT event_id, workspace_id, nextval('event_seq') AS seq, name, visible_id, data, decisions, place,
         instant + place * interval '1 microsecond' AS received_at
    FROM (SELECT * FROM up_to_date
            CROSS JOIN unnest($event_ids::uuid[], $workspace_ids::int[], $names::text[], $visible_ids::text[], $data::text[],
                              $decision_counts::smallint[], $named::bool[])
                 WITH ORDINALITY AS u (event_id, workspace_id, name, visible_id, data, decisions, is_named, place)
           WHERE NOT is_named OR event_id IN (SELECT event_id FROM claimed)
           ORDER BY place) AS incoming
), written AS (
  INSERT INTO event (event_id, workspace_id, seq, name, external_id, data, received_at, decisions)
  SELECT event_id, workspace_id, seq, name, visible_id, data, received_at, decisions FROM fresh
), decided AS MATERIALIZED (
  SELECT fresh.event_id, fresh.workspace_id, fresh.seq, fresh.received_at, u.function_id, u.reason, u.limit_keys, u.ordinal,
         CASE WHEN u.reason IS NULL THEN (id_head || u.id_tail)::uuid END AS run_id
    FROM up_to_date
   CROSS JOIN unnest($places::bigint[], $function_ids::int[], $reasons::text[], $id_tails::text[], $limit_keys::text[])
              WITH ORDINALITY AS u (place, function_id, reason, id_tail, limit_keys, ordinal)
    JOIN fresh USING (place)
), noted AS (
  INSERT INTO event_decision (event_id, function_id, decision, reason, run_id)
  SELECT event_id, function_id, CASE WHEN reason IS NULL THEN 'run' ELSE 'skipped' END, reason, run_id FROM decided
), started AS (
  INSERT INTO run (run_id, workspace_id, function_id, event_id, event_seq, created_at)
  SELECT run_id, workspace_id, function_id, event_id, seq, received_at FROM decided WHERE run_id IS NOT NULL
), handed AS MATERIALIZED (
  SELECT decided.run_id, decided.ordinal
    FROM decided
    JOIN (SELECT lane.function_id FROM unnest($open_lanes::int[]) AS lane (function_id)
           WHERE (SELECT run_id FROM live_run WHERE live_run.state = 'ready' AND live_run.function_id = lane.function_id
                   ORDER BY order_at, run_id LIMIT 1) IS NULL
             AND NOT EXISTS (SELECT FROM lane_hold WHERE lane_hold.function_id = lane.function_id
                                                     AND lane_hold.held_until > clock_timestamp())) AS open_lane
         USING (function_id)
   WHERE decided.run_id IS NOT NULL
   ORDER BY decided.ordinal LIMIT $places_free::int
), living AS (
  INSERT INTO live_run (run_id, workspace_id, function_id, state, order_at, limit_key_ids, generation, engine_id, leased_at, due_at)
  SELECT decided.run_id, workspace_id, function_id, CASE WHEN handed.run_id IS NULL THEN 'ready' ELSE 'leased' END, received_at,
         limit_keys::bigint[], CASE WHEN handed.run_id IS NULL THEN 0 ELSE 1 END,
         CASE WHEN handed.run_id IS NOT NULL THEN $engine_id::uuid END,
         CASE WHEN handed.run_id IS NOT NULL THEN instant END,
         CASE WHEN handed.run_id IS NOT NULL THEN instant + make_interval(secs => $lease_seconds) END
    FROM up_to_date CROSS JOIN decided LEFT JOIN handed ON handed.run_id = decided.run_id
   WHERE decided.run_id IS NOT NULL
)
SELECT instant,
       CASE WHEN cardinality($named_event_ids) > 0 THEN ARRAY(SELECT place FROM fresh ORDER BY place) END AS places,
       ARRAY(SELECT run_id FROM decided ORDER BY ordinal) AS run_ids,
       ARRAY(SELECT ordinal FROM handed) AS handed,
       ARRAY(SELECT u.ordinal FROM unnest($name_workspace_ids::int[], $distinct_names::text[])
                    WITH ORDINALITY AS u (workspace_id, event_name, ordinal)
              WHERE EXISTS (SELECT FROM event_shape AS shape
                             WHERE shape.workspace_id = u.workspace_id AND shape.event_name = u.event_name)) AS shaped,
       CASE WHEN EXISTS (SELECT FROM unnest($name_workspace_ids, $distinct_names) AS u (workspace_id, event_name)
                           JOIN event_shape USING (workspace_id, event_name)) THEN ARRAY(SELECT seq FROM fresh ORDER BY place)
       END AS seqs
  FROM up_to_date""",
)


class Inserted(msgspec.Struct, frozen=True):
    """What was written of a group of events.

    `places`: of the events that were not sent before. `runs`: each decision of those with its run. `handed_over`: those of `runs`
    whose run is leased to this engine. `seqs`: of the events at `places`, if waits were ever registered for any of their names, which are
    then in `awaited_names`. The n-th event of the group was received n microseconds after `instant`.
    """

    instant: datetime
    places: Sequence[int]
    runs: list[tuple[Decision, UUID | None]]
    handed_over: list[tuple[Decision, UUID]]
    awaited_names: set[tuple[int, str]]
    seqs: Sequence[int]


async def insert_events(
    conn: Connection,
    events: Sequence[NewEvent],
    decisions: Sequence[Decision],
    known: Mapping[int, KnownWorkspace],
    limit_key_ids: Mapping[tuple[int, bytes], int],
    *,
    claims_ids: bool,
    room: HandoverRoom | None,
) -> Inserted | None:
    """Write the events; `claims_ids`: those only whose own ids are new. None: `known` is out of date, and nothing was written."""
    counts = [0] * len(events)
    for decision in decisions:
        counts[decision.place] += 1
    is_named = [claims_ids and event.external_id is not None for event in events]
    named = [event for event in events if event.external_id is not None] if claims_ids else []
    names = list({(event.workspace_id, event.name) for event in events})
    row = await conn.fetchrow(
        INSERT_EVENTS,
        known_workspace_ids=list(known),
        sync_versions=[workspace.sync_version for workspace in known.values()],
        named_workspace_ids=[event.workspace_id for event in named],
        scopes=[event.scope for event in named],
        external_ids=[event.external_id for event in named],
        named_event_ids=[event.event_id for event in named],
        body_sha256s=[event.body_sha256 for event in named],
        event_ids=[event.event_id for event in events],
        workspace_ids=[event.workspace_id for event in events],
        names=[event.name for event in events],
        visible_ids=[event.visible_id for event in events],
        data=[event.data for event in events],
        decision_counts=counts,
        named=is_named,
        places=[decision.place + 1 for decision in decisions],
        function_ids=[decision.function.function_id for decision in decisions],
        reasons=[decision.skipped_because for decision in decisions],
        id_tails=uuid7_tails(os.urandom(10 * len(decisions)), len(decisions)),
        limit_keys=[_array_text(limit_key_ids[key[0], key[1]] for key in d.keys) if d.keys else None for d in decisions],
        open_lanes=_open_lanes(events, decisions, room),
        places_free=0 if room is None else room.places,
        engine_id=None if room is None else room.engine_id,
        lease_seconds=0.0 if room is None else room.lease_seconds,
        name_workspace_ids=[workspace_id for workspace_id, _ in names],
        distinct_names=[name for _, name in names],
    )
    if row is None:
        return None
    places: Sequence[int] = range(len(events))
    written = decisions
    if row["places"] is not None and len(row["places"]) < len(events):
        places = [place - 1 for place in row["places"]]
        fresh = set(places)
        written = [decision for decision in decisions if decision.place in fresh]
    return Inserted(
        instant=row["instant"],
        places=places,
        runs=list(zip(written, row["run_ids"], strict=True)),
        handed_over=_handed_over(decisions, written, row["run_ids"], row["handed"]),
        awaited_names={names[ordinal - 1] for ordinal in row["shaped"]},
        seqs=row["seqs"] or (),
    )


def _open_lanes(events: Sequence[NewEvent], decisions: Sequence[Decision], room: HandoverRoom | None) -> list[int]:
    """The lanes whose runs may be handed over, as far as is known here: without limits, and of apps that may have more."""
    if room is None or room.places == 0:
        return []
    return list(
        {
            decision.function.function_id
            for decision in decisions
            if not decision.function.limits and events[decision.place].workspace_id not in room.full_workspaces
        }
    )


def _handed_over(
    decisions: Sequence[Decision], written: Sequence[Decision], run_ids: Sequence[UUID | None], ordinals: Sequence[int]
) -> list[tuple[Decision, UUID]]:
    if not ordinals:
        return []
    run_of = dict(zip(map(id, written), run_ids, strict=True))
    handed = [(decisions[ordinal - 1], run_of[id(decisions[ordinal - 1])]) for ordinal in ordinals]
    return [(decision, run_id) for decision, run_id in handed if run_id is not None]


def _array_text(numbers: Iterable[int]) -> str:
    """An array literal: unnest can not take an array of arrays of different lengths."""
    return "{" + ",".join(map(str, numbers)) + "}"
