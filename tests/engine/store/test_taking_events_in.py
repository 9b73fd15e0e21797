"""How events become runs: in few round trips, by what is known of the functions, and handed over at once where nothing stands before."""

from __future__ import annotations

from copy import copy
from typing import Any

import asyncpg
import pytest
import trio
from msgspec import Raw

from engine.core.outcome import HandedBack
from engine.store.append_events import Appended, NewEvent, append_events
from engine.store.apply_outcomes import apply_outcomes
from engine.store.database import Database, TransactionConflict
from engine.store.event_buckets import bucket_locks
from engine.store.event_json import instant_text
from engine.store.function_cache import FunctionCache
from engine.store.handover_room import HandoverRoom
from engine.store.read_invocations import read_invocations
from engine.store.sql import Connection
from protocol.manifest import FunctionConfig, Trigger
from protocol.ops import Complete
from tests.engine.store.world import LEASE_SECONDS, World, function, make_world, new_id, send, step, wait

DONE = Complete(Raw(b"1"))


def room(world: World, places: int = 100, full: tuple[int, ...] = ()) -> HandoverRoom:
    return HandoverRoom(world.engine_id, LEASE_SECONDS, places, full)


async def append_with_room(world: World, *events: NewEvent, places: int = 100, full: tuple[int, ...] = ()) -> Appended:
    return await world.database.transact(append_events, list(events), room=room(world, places, full))


def elsewhere(world: World) -> World:
    """The same workspace in another process, which knows nothing of what this one knows."""
    database = copy(world.database)
    database._functions = FunctionCache()
    return World(database, world.workspace_id, new_id())


# What is known ------------------------------------------------------------------------------------------------------------


async def test_a_sync_between_the_look_at_the_functions_and_the_write_counts(database: Database) -> None:
    world = await make_world(database, function("f", "go"))
    await world.start()
    other = elsewhere(world)
    await other.sync(function("f", "other"), function("g", "go"), function("h", "go", limit=1))
    [answer] = (await world.append(world.event("go"))).answers
    assert sorted(name for _, name in answer.runs) == ["g", "h"]
    await other.sync(function("f", "go"))
    [answer] = (await world.append(world.event("go", None, "mine"))).answers
    assert [name for _, name in answer.runs] == ["f"] and not answer.is_duplicate
    rows = await world.rows("SELECT event_id, decisions FROM event ORDER BY seq")
    assert [row["decisions"] for row in rows] == [1, 2, 1], "the write that was out of date left nothing"
    await world.assert_sound()


async def test_every_change_of_an_app_is_a_new_version_and_the_same_manifest_again_is_none(database: Database) -> None:
    world = await make_world(database, function("f", "go"))
    versions = []
    for functions in ([function("f", "go")], [function("f", "other")], [function("f", "other", limit=1)], [function("g", "go")]):
        await world.sync(*functions)
        [row] = await world.rows("SELECT sync_version FROM workspace WHERE workspace_id = $1", world.workspace_id)
        versions.append(row["sync_version"])
    assert versions == sorted(set(versions))
    await world.sync(function("g", "go"))
    [row] = await world.rows("SELECT sync_version FROM workspace WHERE workspace_id = $1", world.workspace_id)
    assert row["sync_version"] == versions[-1]


async def test_a_claim_hands_over_the_configuration_in_force(database: Database) -> None:
    world = await make_world(database, function("f", "go", retries=1))
    await world.start()
    await world.claim_one()
    await elsewhere(world).sync(function("f", "go", retries=7))
    await world.start()
    [handover] = (await world.claimed()).handovers
    assert handover.config.retries == 7 and handover.invocation.function == "f"


async def test_a_start_of_a_function_that_was_synced_a_moment_ago_is_not_missed(database: Database) -> None:
    world = await make_world(database, function("f", "go"))
    await world.start()
    await elsewhere(world).sync(function("f", "go"), function("g", "never"))
    [row] = await world.rows("SELECT function_id FROM function WHERE name = 'g'")
    started = NewEvent(world.workspace_id, new_id(), "durable.start", "1", only_function_id=row["function_id"])
    [answer] = (await world.append(started)).answers
    assert [name for _, name in answer.runs] == ["g"]


async def test_conditions_choose_functions_and_a_skip_says_why(database: Database) -> None:
    small = FunctionConfig("small", [Trigger("go", "event.data.n < 3"), Trigger("go", "event.data.n == 10")])
    world = await make_world(database, small, function("all", "go"))
    answers = (await world.append(*(world.event("go", {"n": n}) for n in (1, 5, 10)))).answers
    assert [sorted(name for _, name in answer.runs) for answer in answers] == [["all", "small"], ["all"], ["all", "small"]]
    rows = await world.rows("SELECT reason, run_id FROM event_decision WHERE decision = 'skipped'")
    assert len(rows) == 1 and rows[0]["run_id"] is None and "event.data.n < 3" in rows[0]["reason"]
    assert [row["decisions"] for row in await world.rows("SELECT decisions FROM event ORDER BY seq")] == [2, 2, 2]
    await world.assert_sound()


async def test_a_group_keeps_its_order_in_seq_time_lane_and_run_ids(database: Database) -> None:
    world = await make_world(database)
    answers = (await world.append(*(world.event("go", n) for n in range(50)))).answers
    rows = await world.rows(
        "SELECT event.event_id, event.data, run.run_id, run.event_seq, event.seq, event.received_at FROM live_run "
        "JOIN run USING (run_id) JOIN event USING (event_id) ORDER BY order_at"
    )
    assert [row["data"] for row in rows] == [str(n) for n in range(50)]
    assert [row["seq"] for row in rows] == sorted(row["seq"] for row in rows) == [row["event_seq"] for row in rows]
    assert [answer.runs[0][0] for answer in answers] == [row["run_id"] for row in rows]
    assert all(row["run_id"].version == 7 and row["run_id"].variant == "specified in RFC 4122" for row in rows)
    unix_ms = int(rows[0]["received_at"].timestamp() * 1000)
    assert all(abs((row["run_id"].int >> 80) - unix_ms) <= 1 for row in rows)


# Ids that were sent before ----------------------------------------------------------------------------------------------------


async def test_a_group_with_new_repeated_and_doubled_ids_answers_each_as_it_is(database: Database) -> None:
    world = await make_world(database)
    [first] = (await world.append(world.event("go", 1, "a"))).answers
    group = [world.event("go", 0), world.event("go", 1, "a"), world.event("go", 2, "b"), world.event("go", 2, "b")]
    group.append(world.event("go", 9, "a"))
    answers = (await append_with_room(world, *group)).answers
    assert [answer.is_duplicate for answer in answers] == [False, True, False, True, True]
    assert [answer.is_conflict for answer in answers] == [False, False, False, False, True]
    assert answers[1].runs == answers[4].runs == first.runs and answers[3].runs == answers[2].runs
    assert len(await world.rows("SELECT 1 FROM run")) == 3
    await world.assert_sound()


async def test_the_second_of_two_senders_of_one_id_waits_for_the_first(database: Database) -> None:
    world = await make_world(database, function("f", "go"), function("g", "new", limit=2, key="k"))
    answers: list[Any] = []

    async def post(name: str) -> None:
        answers.append((await world.append(world.event(name, {"k": 1}, f"once {name}"))).answers[0])

    for name in ("go", "new"):
        async with trio.open_nursery() as nursery:
            async with world.paused(append_events, [world.event(name, {"k": 1}, f"once {name}")]) as first:
                nursery.start_soon(post, name)
                await trio.sleep(0.1)
                assert len(answers) == (name == "new")
        assert answers[-1].is_duplicate and answers[-1].runs == first[0].answers[0].runs
    await world.assert_sound()


async def test_events_of_new_limit_keys_with_ids_are_taken_in_once(database: Database) -> None:
    world = await make_world(database, function("f", "go", limit=1, key="k"))
    for n in (1, 2):
        answers = (await world.append(*(world.event("go", {"k": f"{n}{k}"}, f"id{k}") for k in range(4)))).answers
        assert [answer.is_duplicate for answer in answers] == [n == 2] * 4
    keys = await world.rows("SELECT key_text FROM limit_key ORDER BY 1")
    assert [row["key_text"] for row in keys][:4] == ['"10"', '"11"', '"12"', '"13"']
    assert len(await world.rows("SELECT 1 FROM live_run WHERE limit_key_ids IS NOT NULL")) == 4
    await world.assert_sound()


# Handing over at once ---------------------------------------------------------------------------------------------------------


async def test_a_run_that_nothing_holds_back_is_leased_as_it_is_created(database: Database) -> None:
    world = await make_world(database)
    appended = await append_with_room(world, world.event("go", {"n": 1.50}), world.event("go", "x", "mine"))
    assert not appended.has_due_runs
    assert [h.lease.run_id for h in appended.handovers] == [answer.runs[0][0] for answer in appended.answers]
    read = await database.transact(read_invocations, [handover.lease for handover in appended.handovers])
    for now, later in zip(
        sorted(appended.handovers, key=lambda h: h.lease.run_id), sorted(read, key=lambda h: h.lease.run_id), strict=True
    ):
        assert (now.lease, now.config, now.offer, now.size_bytes) == (later.lease, later.config, later.offer, later.size_bytes)
        assert now.invocation.event == later.invocation.event and now.invocation.lease_seconds == LEASE_SECONDS
        assert 0 < later.invocation.lease_seconds <= LEASE_SECONDS
    rows = await world.rows("SELECT state, generation, engine_id, leased_at <= due_at AS is_timed FROM live_run")
    assert all(dict(row) == {"state": "leased", "generation": 1, "engine_id": world.engine_id, "is_timed": True} for row in rows)
    assert await world.claim() == []
    for handover in appended.handovers:
        assert (await world.say(handover.lease, step("a"), DONE, ends=True)).status == "ok"
    await world.assert_sound()


async def test_no_more_runs_are_handed_over_than_there_are_places_and_the_first_come_first(database: Database) -> None:
    world = await make_world(database)
    appended = await append_with_room(world, *(world.event("go", n) for n in range(5)), places=2)
    assert [bytes(h.invocation.event.data) for h in appended.handovers] == [b"0", b"1"] and appended.has_due_runs
    none = await append_with_room(world, world.event("go"), places=0)
    assert none.handovers == [] and none.has_due_runs
    assert len(await world.claim()) == 4
    await world.assert_sound()


async def test_behind_a_ready_run_of_its_lane_none_is_handed_over(database: Database) -> None:
    world = await make_world(database, function("f", "go"), function("g", "go", "other"))
    await world.append(world.event("other"))
    appended = await append_with_room(world, world.event("go"))
    assert [handover.invocation.function for handover in appended.handovers] == ["f"] and appended.has_due_runs
    await world.claim()
    appended = await append_with_room(world, world.event("go"))
    assert sorted(handover.invocation.function for handover in appended.handovers) == ["f", "g"] and not appended.has_due_runs
    await world.assert_sound()


@pytest.mark.parametrize("cause", ["limit", "held", "full"])
async def test_what_a_claim_would_pass_over_is_not_handed_over(database: Database, cause: str) -> None:
    world = await make_world(database, function("f", "go", limit=5 if cause == "limit" else None))
    if cause == "held":
        await world.rows(
            "INSERT INTO lane_hold (function_id, held_until, cause, detail) "
            "SELECT function_id, now() + interval '1 hour', 'app_unreachable', 'no' FROM function RETURNING 1"
        )
    full = (world.workspace_id,) if cause == "full" else ()
    appended = await append_with_room(world, world.event("go"), full=full)
    assert appended.handovers == [] and appended.has_due_runs
    assert [row["state"] for row in await world.rows("SELECT state FROM live_run")] == ["ready"]
    await world.assert_sound()


async def test_a_group_that_may_have_been_committed_hands_nothing_over_and_lets_go_what_was_unheard(database: Database) -> None:
    world = await make_world(database)
    events = [world.event("go"), world.event("go", 1, "mine")]
    first = await append_with_room(world, *events)
    assert len(first.handovers) == 2
    again = await database.transact(append_events, events, is_repeated=True, room=room(world))
    assert again.handovers == [] and again.has_due_runs
    assert [answer.runs for answer in again.answers] == [answer.runs for answer in first.answers]
    assert {row["state"] for row in await world.rows("SELECT state FROM live_run")} == {"ready"}
    await world.assert_sound()
    leases = await world.claim()
    assert [lease.generation for lease in leases] == [2, 2]
    assert (await world.say(first.handovers[0].lease, DONE, ends=True)).status == "stale"


async def test_what_another_engine_or_a_later_lease_has_is_not_let_go(database: Database) -> None:
    world = await make_world(database)
    events = [world.event("go")]
    [handover] = (await append_with_room(world, *events)).handovers
    await world.outcome(handover.lease, HandedBack())
    await world.claim_one()
    again = await database.transact(append_events, events, is_repeated=True, room=room(world))
    assert not again.has_due_runs and await world.state(handover.lease.run_id) == "leased"


async def test_what_this_engine_claimed_meanwhile_is_not_let_go(database: Database) -> None:
    """A commit that was not heard of left a ready run, and the dispatcher found it before the writer came again: it is under way."""
    world = await make_world(database)
    events = [world.event("go")]
    await append_with_room(world, *events, places=0)
    assert (await world.claim_one()).generation == 1
    again = await database.transact(append_events, events, is_repeated=True, room=room(world))
    assert not again.has_due_runs
    assert await world.state(again.answers[0].runs[0][0]) == "leased"
    await world.assert_sound()


@pytest.mark.parametrize("sent_id", [None, "mine"])
async def test_a_try_that_commits_while_it_is_repeated_is_recognized(database: Database, sent_id: str | None) -> None:
    """The server goes on with a commit after its client was lost."""
    world = await make_world(database)
    events = [world.event("go", 1, sent_id)]

    async def first_try(conn: Connection) -> Appended:
        return await append_events(conn, events, room=room(world))

    async def repeat() -> Appended:
        return await database.transact(append_events, events, is_repeated=True, room=room(world))

    conflicts: list[TransactionConflict] = []

    async def repeat_at_once() -> None:
        try:
            await repeat()
        except TransactionConflict as conflict:
            conflicts.append(conflict)

    async with trio.open_nursery() as nursery:
        async with world.paused(first_try) as first:
            nursery.start_soon(repeat_at_once)
            await trio.sleep(0.2)
    assert len(conflicts) == 1
    again = await repeat()
    [answer] = again.answers
    assert not answer.is_duplicate and answer.runs == first[0].answers[0].runs
    assert again.has_due_runs and len(await world.rows("SELECT 1 FROM event")) == 1
    await world.assert_sound()


async def test_two_engines_that_hand_over_at_once_lease_each_run_once(database: Database) -> None:
    world = await make_world(database)
    other = elsewhere(world)
    leases: list[Any] = []

    async def take(engine: World) -> None:
        for _ in range(10):
            leases.extend((await append_with_room(engine, *(engine.event("go") for _ in range(3)), places=2)).handovers)
            leases.extend((await engine.claimed()).handovers)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take, world)
        nursery.start_soon(take, other)
    leases.extend((await world.claimed()).handovers)
    assert len({handover.lease.run_id for handover in leases}) == len(leases) == 60
    await world.assert_sound()


# Waits and round trips ----------------------------------------------------------------------------------------------------------


async def test_only_events_of_awaited_names_are_keyed_and_they_end_their_waits(database: Database) -> None:
    world = await make_world(database)
    run_id = await world.start()
    await world.say(await world.claim_one(), wait("w", "approved", {"id": 7}), ends=True)
    events = [world.event("go"), world.event("approved", {"id": 6}), world.event("approved", {"id": 7}, "a"), world.event("x")]
    appended = await append_with_room(world, *events)
    assert appended.has_due_runs and len(appended.handovers) == 1 and await world.state(run_id) == "ready"
    [(step_id, _, data)] = await world.memo(run_id)
    [row] = await world.rows("SELECT received_at FROM event WHERE external_id = 'a'")
    assert step_id == "w" and data is not None and f'"received_at":"{instant_text(row["received_at"])}"' in data
    assert len(await world.rows("SELECT 1 FROM event_key_match")) == 2
    await world.assert_sound()


async def test_taking_events_in_takes_three_round_trips(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    world = await make_world(database)
    await world.start()
    sent: list[str] = []
    names = {(world.workspace_id, "go"), (world.workspace_id, "other")}

    def spied(method: Any) -> Any:
        async def call(self: Any, query: str, *args: Any, **options: Any) -> Any:
            sent.append(query)
            return await method(self, query, *args, **options)

        return call

    for name in ("execute", "_execute"):
        monkeypatch.setattr(asyncpg.Connection, name, spied(getattr(asyncpg.Connection, name)))
    events = [world.event("go", None, "id"), world.event("other"), world.event("go")]
    await database.transact_opened(bucket_locks(shared=names), append_events, events, room=room(world))
    assert len(sent) == 3, sent
    assert sent[0].startswith("BEGIN;SELECT pg_advisory_xact_lock_shared(") and sent[2] == "COMMIT"


async def test_a_transaction_that_was_opened_with_other_locks_takes_its_own(database: Database) -> None:
    world = await make_world(database)
    await world.start()
    report = world.report(await world.claim_one(), wait("w", "approved"), ends=True)
    async with trio.open_nursery() as nursery:
        async with world.paused(apply_outcomes, [report], LEASE_SECONDS):
            opening = bucket_locks(shared={(world.workspace_id, "go")})
            nursery.start_soon(database.transact_opened, opening, append_events, [world.event("approved")])
            await trio.sleep(0.1)
            assert await world.rows("SELECT 1 FROM event WHERE name = 'approved'") == []
    assert await world.state(report.run_id) == "ready"


async def test_sent_events_start_runs_by_what_is_known_too(database: Database) -> None:
    world = await make_world(database, function("f", "go"))
    await world.start()
    lease = await world.claim_one()
    await elsewhere(world).sync(function("f", "go"), function("g", "sent", limit=1, key="a"))
    assert (await world.say(lease, send("tell", ("sent", {"a": 1}), ids=("one",)))).status == "ok"
    assert len(await world.rows("SELECT 1 FROM live_run WHERE limit_key_ids IS NOT NULL")) == 1
    await world.assert_sound()
