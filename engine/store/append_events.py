"""Takes events in: in one transaction the events, what was decided for each function, the runs, and the waits that they end.

It owns the rules of deduplication by event id. It never starts anything: a new run is a row, and the dispatcher finds it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from uuid import UUID

from engine.store.crash_points import crash_point
from engine.store.create_runs import decide_runs, write_runs
from engine.store.event_buckets import lock_event_buckets
from engine.store.event_json import event_json
from engine.store.match_waits import match_waits
from engine.store.sql import Connection, Sql

READ_KNOWN_EVENTS = Sql("read_known_events", "SELECT event_id FROM event WHERE event_id = ANY($event_ids::uuid[])")

# Sorted, so that two transactions with the same ids wait for each other in one order.
CLAIM_EVENT_IDS = Sql(
    "claim_event_ids",
    """
INSERT INTO event_dedup (workspace_id, scope, external_id, event_id, body_sha256, expires_at)
SELECT workspace_id, scope, external_id, event_id, body_sha256, now() + interval '24 hours'
  FROM unnest($workspace_ids::int[], $scopes::text[], $external_ids::text[], $event_ids::uuid[], $body_sha256s::bytea[])
       WITH ORDINALITY AS u (workspace_id, scope, external_id, event_id, body_sha256, ordinal)
 ORDER BY workspace_id, scope, external_id, ordinal
ON CONFLICT DO NOTHING
RETURNING event_id""",
)

READ_FIRST_EVENTS = Sql(
    "read_first_events",
    """
SELECT dedup.workspace_id, dedup.scope, dedup.external_id, dedup.event_id, dedup.body_sha256
  FROM event_dedup AS dedup
  JOIN unnest($workspace_ids::int[], $scopes::text[], $external_ids::text[]) AS u (workspace_id, scope, external_id)
       USING (workspace_id, scope, external_id)""",
)

INSERT_EVENTS = Sql(
    "insert_events",
    """
INSERT INTO event (event_id, workspace_id, seq, name, external_id, data, received_at, decisions)
SELECT event_id, workspace_id, nextval('event_seq'), name, external_id, data, clock_timestamp(), decisions
  FROM (SELECT * FROM unnest($event_ids::uuid[], $workspace_ids::int[], $names::text[], $external_ids::text[], $data::text[],
                             $decisions::smallint[])
               WITH ORDINALITY AS u (event_id, workspace_id, name, external_id, data, decisions, ordinal)
         ORDER BY ordinal) AS incoming
RETURNING event_id, seq, received_at""",
)

READ_DECIDED_RUNS = Sql(
    "read_decided_runs",
    """
SELECT decision.event_id, decision.run_id, function.name
  FROM event_decision AS decision JOIN function USING (function_id)
 WHERE decision.event_id = ANY($event_ids::uuid[]) AND decision.run_id IS NOT NULL
 ORDER BY decision.event_id, decision.run_id""",
)

EVENT_SCOPE = "event"


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event to take in. `event_id` is made before the first try, so that a repeated one is known.

    `external_id` is the sender's id, if any: it deduplicates within `scope`. `only_function_id` starts that one function and no other
    (a direct start).
    """

    workspace_id: int
    event_id: UUID
    name: str
    data: str
    external_id: str | None = None
    scope: str = EVENT_SCOPE
    only_function_id: int | None = None

    @property
    def visible_id(self) -> str:
        """The id that senders, apps and people see."""
        return self.external_id or str(self.event_id)

    @property
    def body_sha256(self) -> bytes:
        return sha256(f"{self.name}\n{self.data}".encode()).digest()

    @property
    def dedup_key(self) -> tuple[int, str, str]:
        assert self.external_id is not None
        return (self.workspace_id, self.scope, self.external_id)


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event with its place in the order of events."""

    event: NewEvent
    seq: int
    received_at: datetime

    @property
    def visible_id(self) -> str:
        return self.event.visible_id

    @property
    def payload(self) -> str:
        """The event as apps get it."""
        return event_json(self.visible_id, self.event.name, self.event.data, self.received_at)


@dataclass(frozen=True, slots=True)
class AppendedEvent:
    """The answer for one event: its id, the runs that it made, and whether it had been sent before."""

    visible_id: str
    event_id: UUID
    runs: tuple[tuple[UUID, str], ...]
    is_duplicate: bool = False
    is_conflict: bool = False


@dataclass(frozen=True, slots=True)
class Appended:
    """What an append did: an answer per event, and whether a run became due."""

    answers: list[AppendedEvent]
    has_due_runs: bool


async def append_events(conn: Connection, events: Sequence[NewEvent], *, is_repeated: bool = False) -> Appended:
    """Take `events` in, in one transaction of its own. `is_repeated`: an earlier try may have been committed."""
    await lock_event_buckets(conn, shared={(event.workspace_id, event.name) for event in events})
    known: set[UUID] = set()
    if is_repeated:
        rows = await conn.fetch(READ_KNOWN_EVENTS, event_ids=[event.event_id for event in events])
        known = {row["event_id"] for row in rows}
    fresh = await claim_event_ids(conn, [event for event in events if event.event_id not in known])
    has_due_runs = await write_events(conn, fresh)
    answers = await _answers(conn, events, {event.event_id for event in fresh}, known)
    crash_point("events_before_commit")
    return Appended(answers, has_due_runs)


async def claim_event_ids(conn: Connection, events: Sequence[NewEvent]) -> list[NewEvent]:
    """Those of `events` that were not sent before. The second of two senders of one id waits here for the first."""
    named = [event for event in events if event.external_id is not None]
    if not named:
        return list(events)
    rows = await conn.fetch(
        CLAIM_EVENT_IDS,
        workspace_ids=[event.workspace_id for event in named],
        scopes=[event.scope for event in named],
        external_ids=[event.external_id for event in named],
        event_ids=[event.event_id for event in named],
        body_sha256s=[event.body_sha256 for event in named],
    )
    first = {row["event_id"] for row in rows}
    return [event for event in events if event.external_id is None or event.event_id in first]


async def write_events(conn: Connection, events: Sequence[NewEvent]) -> bool:
    """Write new events with all that follows from them; whether a run became due. The caller holds their buckets."""
    if not events:
        return False
    decisions = await decide_runs(conn, events)
    decided = Counter(decision.event.event_id for decision in decisions)
    rows = await conn.fetch(
        INSERT_EVENTS,
        event_ids=[event.event_id for event in events],
        workspace_ids=[event.workspace_id for event in events],
        names=[event.name for event in events],
        external_ids=[event.visible_id for event in events],
        data=[event.data for event in events],
        decisions=[decided[event.event_id] for event in events],
    )
    places = {row["event_id"]: row for row in rows}
    stored = [StoredEvent(event, places[event.event_id]["seq"], places[event.event_id]["received_at"]) for event in events]
    created = await write_runs(conn, decisions, stored)
    woken = await match_waits(conn, stored)
    return created > 0 or bool(woken)


async def _answers(conn: Connection, events: Sequence[NewEvent], fresh: set[UUID], known: set[UUID]) -> list[AppendedEvent]:
    repeated = [event for event in events if event.event_id not in fresh and event.event_id not in known]
    first_of: dict[tuple[int, str, str], tuple[UUID, bytes]] = {}
    if repeated:
        rows = await conn.fetch(
            READ_FIRST_EVENTS,
            workspace_ids=[event.workspace_id for event in repeated],
            scopes=[event.scope for event in repeated],
            external_ids=[event.external_id for event in repeated],
        )
        first_of = {
            (row["workspace_id"], row["scope"], row["external_id"]): (row["event_id"], row["body_sha256"]) for row in rows
        }
    event_ids = {event.event_id for event in events} | {event_id for event_id, _ in first_of.values()}
    runs: dict[UUID, list[tuple[UUID, str]]] = {}
    for row in await conn.fetch(READ_DECIDED_RUNS, event_ids=list(event_ids)):
        runs.setdefault(row["event_id"], []).append((row["run_id"], row["name"]))
    answers: list[AppendedEvent] = []
    for event in events:
        event_id, is_duplicate, is_conflict = event.event_id, False, False
        if event_id not in fresh and event_id not in known:
            event_id, body_sha256 = first_of[event.dedup_key]
            is_duplicate, is_conflict = True, body_sha256 != event.body_sha256
        answers.append(
            AppendedEvent(event.external_id or str(event_id), event_id, tuple(runs.get(event_id, ())), is_duplicate, is_conflict)
        )
    return answers
