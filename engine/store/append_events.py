"""Takes events in: in one transaction the events, what was decided for each function, the runs, and the waits that they end.

It owns the rules of deduplication by event id. It never starts anything: a new run is a row, and the dispatcher finds it; where this
engine has room, the row is leased to it already and comes back as a handover.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from hashlib import sha256
from uuid import UUID

import asyncpg
import msgspec

from engine.store.crash_points import crash_point
from engine.store.create_runs import Decision, decide_runs, find_limit_keys, insert_limit_keys
from engine.store.database import TransactionConflict
from engine.store.event_buckets import lock_event_buckets
from engine.store.event_json import event_json
from engine.store.function_cache import KnownWorkspace
from engine.store.handover_room import HandoverRoom
from engine.store.insert_events import Inserted, insert_events
from engine.store.know_functions import know_workspaces
from engine.store.lease import Lease
from engine.store.match_waits import match_waits
from engine.store.read_invocations import Handover, LeasedRun, make_handover
from engine.store.sql import Connection, Sql

READ_KNOWN_EVENTS = Sql("read_known_events", "SELECT event_id FROM event WHERE event_id = ANY($event_ids::uuid[])")
# Of a commit that was not heard of: runs that it leased to this engine, which never started them. Such a run was leased at the instant
# of its group, a moment before its own place in the lane; what the dispatcher claimed meanwhile is under way, and was leased later.
RELEASE_UNHEARD_RUNS = Sql(
    "release_unheard_runs",
    """
UPDATE live_run SET state = 'ready', engine_id = NULL, leased_at = NULL, due_at = NULL
 WHERE run_id IN (SELECT live_run.run_id FROM event_decision JOIN live_run USING (run_id)
                   WHERE event_decision.event_id = ANY($event_ids::uuid[]) AND live_run.state = 'leased'
                     AND live_run.generation = 1 AND live_run.engine_id = $engine_id AND live_run.leased_at < live_run.order_at
                   ORDER BY live_run.run_id FOR UPDATE OF live_run)""",
)

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

READ_DECIDED_RUNS = Sql(
    "read_decided_runs",
    """
SELECT decision.event_id, decision.run_id, function.name
  FROM event_decision AS decision JOIN function USING (function_id)
 WHERE decision.event_id = ANY($event_ids::uuid[]) AND decision.run_id IS NOT NULL
 ORDER BY decision.event_id, decision.run_id""",
)

EVENT_SCOPE = "event"
# A server that lost its client may still be committing. Tried once more, the events are known.
_OUTRUN = "the earlier try was committed after the look for its events"


class NewEvent(msgspec.Struct, frozen=True):
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


class AppendedEvent(msgspec.Struct, frozen=True):
    """The answer for one event: its id, the runs that it made, and whether it had been sent before."""

    visible_id: str
    event_id: UUID
    runs: tuple[tuple[UUID, str], ...]
    is_duplicate: bool = False
    is_conflict: bool = False


@dataclass(frozen=True, slots=True)
class Appended:
    """What an append did: an answer per event, whether a run became due, and the runs that this engine has to start."""

    answers: list[AppendedEvent]
    has_due_runs: bool
    handovers: list[Handover] = field(default_factory=list)


@dataclass(slots=True)
class _Written:
    """What was written of a group: the runs of each event that is new, by its place, and what follows from them."""

    runs_of: dict[int, list[tuple[UUID, str]]] = field(default_factory=dict)
    has_due_runs: bool = False
    handovers: list[Handover] = field(default_factory=list)


async def append_events(
    conn: Connection, events: Sequence[NewEvent], *, is_repeated: bool = False, room: HandoverRoom | None = None
) -> Appended:
    """Take `events` in, in one transaction of its own. `is_repeated`: an earlier try may have been committed.

    With `room`, runs that nothing holds back are leased to its engine at once; it must start each of the handovers after the commit.
    """
    await lock_event_buckets(conn, shared={(event.workspace_id, event.name) for event in events})
    known: set[UUID] = set()
    has_released = False
    if is_repeated:
        event_ids = [event.event_id for event in events]
        known = {row["event_id"] for row in await conn.fetch(READ_KNOWN_EVENTS, event_ids=event_ids)}
        if known and room is not None:
            has_released = await conn.execute(RELEASE_UNHEARD_RUNS, event_ids=list(known), engine_id=room.engine_id) > 0
        room = None
    places = [place for place, event in enumerate(events) if event.event_id not in known] if known else range(len(events))
    try:
        written = await _write(conn, events, places, claims_ids=True, room=room)
        answers = await _answers(conn, events, written.runs_of, known)
    except asyncpg.UniqueViolationError as error:
        if is_repeated:
            raise TransactionConflict(_OUTRUN) from error
        raise
    if is_repeated and any(a.is_duplicate and a.event_id == e.event_id for a, e in zip(answers, events, strict=True)):
        raise TransactionConflict(_OUTRUN)
    crash_point("events_before_commit")
    return Appended(answers, written.has_due_runs or has_released, written.handovers)


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
    """Write new events with all that follows from them; whether a run became due. The caller holds their buckets and ids."""
    return (await _write(conn, events, range(len(events)), claims_ids=False, room=None)).has_due_runs


async def _write(
    conn: Connection, events: Sequence[NewEvent], places: Sequence[int], *, claims_ids: bool, room: HandoverRoom | None
) -> _Written:
    """Write the events at `places`, those of them that are new; `claims_ids`: whether that is not known yet."""
    versions: dict[int, int | None] = dict.fromkeys(event.workspace_id for event in events)
    while places:
        group = events if len(places) == len(events) else [events[place] for place in places]
        known = await _know(conn, group, versions)
        decisions = decide_runs(group, known)
        limit_key_ids, new_keys = await find_limit_keys(conn, decisions)
        if new_keys:
            if claims_ids:
                # Ids before limit keys: the other order deadlocks with a report that sends an event of the same id.
                fresh = {event.event_id for event in await claim_event_ids(conn, group)}
                places, claims_ids = [place for place in places if events[place].event_id in fresh], False
                continue
            await insert_limit_keys(conn, new_keys)
            limit_key_ids, _ = await find_limit_keys(conn, decisions)
        inserted = await insert_events(conn, group, decisions, known, limit_key_ids, claims_ids=claims_ids, room=room)
        if inserted is not None:
            return await _follow_up(conn, group, places, inserted, known, room)
        conn.functions.forget(set(versions))
    return _Written()


async def _know(conn: Connection, events: Sequence[NewEvent], versions: dict[int, int | None]) -> dict[int, KnownWorkspace]:
    """What is known of the events' workspaces, read anew where a function is to be started that is not known yet."""
    known = await know_workspaces(conn, versions)
    unknown = {
        event.workspace_id
        for event in events
        if event.only_function_id is not None and event.only_function_id not in known[event.workspace_id].functions
    }
    if unknown:
        conn.functions.forget(unknown)
        known = await know_workspaces(conn, versions)
    return known


async def _follow_up(
    conn: Connection,
    group: Sequence[NewEvent],
    places: Sequence[int],
    inserted: Inserted,
    known: dict[int, KnownWorkspace],
    room: HandoverRoom | None,
) -> _Written:
    """End the waits that the events fit, and make the handovers of what was leased."""
    written = _Written({places[place]: [] for place in inserted.places})
    started = 0
    for decision, run_id in inserted.runs:
        if run_id is not None:
            started += 1
            written.runs_of[places[decision.place]].append((run_id, decision.function.name))
    written.has_due_runs = started > len(inserted.handed_over)
    if room is not None:
        written.handovers = [
            _handover(group, inserted.instant, decision, run_id, known, room) for decision, run_id in inserted.handed_over
        ]
    if inserted.awaited_names:
        awaited = [
            StoredEvent(group[place], seq, _received_at(inserted.instant, place))
            for place, seq in zip(inserted.places, inserted.seqs, strict=True)
            if (group[place].workspace_id, group[place].name) in inserted.awaited_names
        ]
        woken = await match_waits(conn, awaited)
        written.has_due_runs = written.has_due_runs or bool(woken)
    return written


def _handover(
    group: Sequence[NewEvent],
    instant: datetime,
    decision: Decision,
    run_id: UUID,
    known: dict[int, KnownWorkspace],
    room: HandoverRoom,
) -> Handover:
    event = group[decision.place]
    lease = Lease(run_id, event.workspace_id, decision.function.function_id, 1, 0, 1)
    received_at = _received_at(instant, decision.place)
    run = LeasedRun(lease, event.visible_id, event.name, event.data, received_at, room.lease_seconds)
    return make_handover(run, known[event.workspace_id])


def _received_at(instant: datetime, place: int) -> datetime:
    """As INSERT_EVENTS counts it."""
    return instant + timedelta(microseconds=place + 1)


async def _answers(
    conn: Connection, events: Sequence[NewEvent], runs_of: dict[int, list[tuple[UUID, str]]], known: set[UUID]
) -> list[AppendedEvent]:
    """An answer for each event: of the new ones what was made, of the others what their first sending made."""
    if len(runs_of) == len(events):
        return [AppendedEvent(e.visible_id, e.event_id, _in_order(runs_of[place])) for place, e in enumerate(events)]
    repeated = [event for place, event in enumerate(events) if place not in runs_of and event.event_id not in known]
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
    earlier: dict[UUID, list[tuple[UUID, str]]] = {}
    for row in await conn.fetch(READ_DECIDED_RUNS, event_ids=[*known, *(event_id for event_id, _ in first_of.values())]):
        earlier.setdefault(row["event_id"], []).append((row["run_id"], row["name"]))
    answers: list[AppendedEvent] = []
    for place, event in enumerate(events):
        if place in runs_of:
            answers.append(AppendedEvent(event.visible_id, event.event_id, _in_order(runs_of[place])))
        elif event.event_id in known:
            answers.append(AppendedEvent(event.visible_id, event.event_id, _in_order(earlier.get(event.event_id, []))))
        else:
            first_id, body_sha256 = first_of[event.dedup_key]
            runs = _in_order(earlier.get(first_id, []))
            answers.append(AppendedEvent(event.visible_id, first_id, runs, True, body_sha256 != event.body_sha256))
    return answers


def _in_order(runs: list[tuple[UUID, str]]) -> tuple[tuple[UUID, str], ...]:
    """The runs of an event in one order, so that asking again gives the same answer."""
    return tuple(sorted(runs)) if len(runs) > 1 else tuple(runs)
