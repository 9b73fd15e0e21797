"""The rules of the store that are easy to get wrong, each with two connections in an explicit order."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import trio
from msgspec import Raw

from engine.core.outcome import CallDied, HandedBack, Interrupted
from engine.store.append_events import append_events
from engine.store.apply_outcomes import apply_outcomes
from engine.store.backfill_shapes import backfill_shapes
from engine.store.cancel_run import cancel_run
from engine.store.claim_runs import claim_runs
from engine.store.database import CommitUnknown, Database, TransactionConflict
from engine.store.fire_timers import fire_timers
from engine.store.group_writer import REQUEUE
from engine.store.reclaim_leases import reclaim_leases
from engine.store.register_waits import BACKFILL_PAGE_EVENTS
from protocol.ops import Complete, Op, Sleep
from tests.engine.store.world import LEASE_SECONDS, function, make_world, send, stays_blocked, step, step_error, wait

DONE = Complete(Raw(b"1"))


async def test_an_event_that_is_being_written_while_its_wait_registers_is_not_missed(database: Database) -> None:
    world = await make_world(database)
    run_id = await world.start()
    lease = await world.claim_one()
    event = world.event("approved", {"id": 7})
    report = world.report(lease, wait("w", "approved", {"id": 7}), ends=True)
    async with trio.open_nursery() as nursery:
        async with world.paused(append_events, [event]):
            nursery.start_soon(world.apply, report)
            await trio.sleep(0.2)
            assert await world.state(run_id) == "leased", "the registration must wait for the event's transaction"
    assert await world.state(run_id) == "ready"
    assert [entry[0] for entry in await world.memo(run_id)] == ["w"]
    await world.assert_sound()


async def test_a_wait_that_is_being_registered_while_its_event_comes_is_not_missed(database: Database) -> None:
    world = await make_world(database)
    run_id = await world.start()
    lease = await world.claim_one()
    report = world.report(lease, wait("w", "approved", {"id": 7}), ends=True)
    async with trio.open_nursery() as nursery:
        async with world.paused(apply_outcomes, [report], LEASE_SECONDS):
            nursery.start_soon(world.append, world.event("approved", {"id": 7}))
            await trio.sleep(0.2)
    assert await world.state(run_id) == "ready"
    await world.assert_sound()


async def test_events_of_other_names_do_not_wait_for_a_registration(database: Database) -> None:
    world = await make_world(database)
    await world.start()
    report = world.report(await world.claim_one(), wait("w", "approved"), ends=True)
    async with world.paused(apply_outcomes, [report], LEASE_SECONDS):
        assert not await stays_blocked(lambda: world.append(world.event("something.else")))


async def test_an_event_before_its_wait_is_taken_by_lookback_even_under_a_new_shape(database: Database) -> None:
    world = await make_world(database)
    run_id = await world.start()
    await world.append(
        world.event("approved", {"id": 6}), world.event("approved", {"id": 7, "n": 1}), world.event("approved", {"id": 7, "n": 2})
    )
    answer = await world.say(await world.claim_one(), wait("w", "approved", {"id": 7}))
    assert answer.resolved[0].id == "w" and b'"n":1' in bytes(answer.resolved[0].data)
    assert await world.state(run_id) == "leased"
    await world.assert_sound()


async def test_an_event_from_before_the_run_or_the_one_that_started_it_does_not_count(database: Database) -> None:
    world = await make_world(database, function("f", "go"))
    await world.append(world.event("approved", {"id": 7}))
    await world.start({"id": 7})
    answer = await world.say(await world.claim_one(), wait("w", "approved", {"id": 7}), wait("v", "go", {"id": 7}))
    assert answer.resolved == []


async def test_a_loop_of_waits_takes_each_event_once_and_skips_none(database: Database) -> None:
    world = await make_world(database)
    run_id = await world.start()
    lease = await world.claim_one()
    for n in range(3):
        await world.append(world.event("tick", {"n": n}))
    seen = []
    for n in range(3):
        answer = await world.say(lease, wait(f"w{n}", "tick"), known=n)
        seen.append(bytes(answer.resolved[0].data))
    assert [f'"n":{n}'.encode() in data for n, data in enumerate(seen)] == [True] * 3
    assert (await world.say(lease, wait("w3", "tick"), known=3)).resolved == []
    await world.say(lease, known=3, ends=True)
    assert await world.state(run_id) == "waiting"
    await world.assert_sound()


async def test_parallel_waits_take_events_in_the_order_of_their_ops(database: Database) -> None:
    world = await make_world(database)
    run_id = await world.start()
    await world.append(world.event("tick", {"n": 0}))
    await world.say(await world.claim_one(), wait("a", "tick"), wait("b", "tick"), wait("c", "tick"), ends=True)
    await world.append(world.event("tick", {"n": 1}), world.event("tick", {"n": 2}))
    memo = await world.memo(run_id)
    assert [entry[0] for entry in memo] == ["a", "b", "c"]
    assert [f'"n":{n}' in str(entry[2]) for n, entry in enumerate(memo)] == [True] * 3


async def test_a_wait_of_a_new_shape_with_many_earlier_events_stays_pending_until_they_are_keyed(database: Database) -> None:
    world = await make_world(database)
    run_id = await world.start()
    total = BACKFILL_PAGE_EVENTS * 2 + 10
    for first in range(0, total, 500):
        await world.append(*(world.event("noise", {"id": n}) for n in range(first, min(first + 500, total))))
    target = total - 1
    answer = await world.say(await world.claim_one(), wait("w", "noise", {"id": target}, timeout_seconds=0.0), ends=True)
    assert answer.status == "ok" and await world.state(run_id) == "waiting"
    await database.transact(fire_timers)
    assert await world.state(run_id) == "waiting", "a pending wait may not time out: an earlier event may be its"
    while (await database.transact(backfill_shapes)).has_more:
        pass
    assert await world.state(run_id) == "ready"
    assert f'"id":{target}' in str((await world.memo(run_id))[0][2])
    await world.assert_sound()


async def test_an_event_that_comes_while_a_shape_is_pending_does_not_overtake_an_earlier_one(database: Database) -> None:
    world = await make_world(database)
    run_id = await world.start()
    await world.append(*(world.event("noise", {"id": n, "first": True}) for n in range(BACKFILL_PAGE_EVENTS + 5)))
    await world.say(await world.claim_one(), wait("w", "noise", {"id": BACKFILL_PAGE_EVENTS + 1}), ends=True)
    await world.append(world.event("noise", {"id": BACKFILL_PAGE_EVENTS + 1, "first": False}))
    while (await database.transact(backfill_shapes)).has_more:
        pass
    assert '"first":true' in str((await world.memo(run_id))[0][2])


async def test_event_against_timeout_whichever_commits_first_and_only_that(database: Database) -> None:
    world = await make_world(database)
    run_id = await world.start()
    await world.say(await world.claim_one(), wait("w", "approved", timeout_seconds=0.0), ends=True)
    async with trio.open_nursery() as nursery:
        async with world.paused(append_events, [world.event("approved", "came")]):
            nursery.start_soon(database.transact, fire_timers)
            await trio.sleep(0.1)
    memo = await world.memo(run_id)
    assert len(memo) == 1 and "came" in str(memo[0][2])
    other = await world.start()
    [lease] = [lease for lease in await world.claim() if lease.run_id == other]
    await world.say(lease, wait("w", "approved", timeout_seconds=0.0), ends=True)
    async with trio.open_nursery() as nursery:
        async with world.paused(fire_timers):
            nursery.start_soon(world.append, world.event("approved", "late"))
            await trio.sleep(0.1)
    assert await world.memo(other) == [("w", 1, "null")]
    await world.assert_sound()


async def test_reports_of_an_older_generation_change_nothing(database: Database) -> None:
    world = await make_world(database)
    run_id = await world.start()
    old = await world.claim_one()
    await world.outcome(old, Interrupted("lease_lost"))
    new = await world.claim_one()
    assert new.generation == old.generation + 1
    for ops, ends in (((step("a"),), False), ((DONE,), True), ((), True)):
        assert (await world.say(old, *ops, ends=ends)).status == "stale"
    assert await world.memo(run_id) == []
    assert (await world.say(new, step("a"))).status == "ok"
    await world.assert_sound()


async def test_a_report_of_another_workspace_is_stale(database: Database) -> None:
    world = await make_world(database)
    await world.start()
    lease = await world.claim_one()
    other = await make_world(database)
    other.workspace_id += 1
    assert (await other.say(lease, DONE, ends=True)).status == "stale"


async def test_a_report_that_was_committed_unheard_is_answered_again_as_it_was(database: Database) -> None:
    world = await make_world(database)
    run_id = await world.start()
    lease = await world.claim_one()
    first = world.report(lease, step("a"), step_error("b"))
    [answer] = (await world.apply(first)).answers
    [again] = (await world.apply(first, is_repeated=True)).answers
    assert [(e.id, e.position) for e in again.resolved] == [(e.id, e.position) for e in answer.resolved] == [("a", 1)]  # type: ignore[union-attr]
    assert [r.attempt for r in again.retries] == [r.attempt for r in answer.retries] == [2]  # type: ignore[union-attr]
    end = world.report(lease, DONE, known=1, ends=True)
    for is_repeated in (False, True):
        [answer] = (await world.apply(end, is_repeated=is_repeated)).answers
        assert answer.status == "ok"  # type: ignore[union-attr]
    assert len(await world.rows("SELECT 1 FROM run_end WHERE run_id = $1", run_id)) == 1
    await world.assert_sound()


async def test_events_that_were_committed_unheard_are_answered_again_and_made_once(database: Database) -> None:
    world = await make_world(database)
    events = [world.event("go", 1), world.event("go", 2, "mine")]
    first = await world.append(*events)
    again = await database.transact(append_events, events, is_repeated=True)
    assert [answer.runs for answer in again.answers] == [answer.runs for answer in first.answers]
    assert len(await world.rows("SELECT 1 FROM run")) == 2


async def test_a_group_skips_runs_that_another_transaction_holds(database: Database) -> None:
    world = await make_world(database)
    await world.start()
    await world.start()
    one, other = await world.claim()
    async with world.paused(apply_outcomes, [world.report(one, step("a"))], LEASE_SECONDS):
        applied = await world.apply(world.report(one, step("b")), world.report(other, step("c")))
    assert applied.answers[0] is REQUEUE
    assert applied.answers[1].status == "ok"  # type: ignore[union-attr]


async def test_the_second_report_of_a_run_waits_for_the_next_group(database: Database) -> None:
    world = await make_world(database)
    await world.start()
    lease = await world.claim_one()
    applied = await world.apply(world.report(lease, step("a")), world.report(lease, step("b")))
    assert applied.answers[1] is REQUEUE


async def test_two_claims_never_lease_one_run_twice(database: Database) -> None:
    world = await make_world(database)
    for _ in range(20):
        await world.start()
    taken: list[Any] = []

    async def claim() -> None:
        taken.extend(await world.claim(5))

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(claim)
    assert len({lease.run_id for lease in taken}) == len(taken)
    await world.assert_sound()


async def test_a_claim_beside_a_claim_under_way_takes_other_runs_and_never_goes_above_the_limit(database: Database) -> None:
    world = await make_world(database, function("f", "go", limit=2, key="k"))
    for _ in range(6):
        await world.start({"k": "a"})
    async with trio.open_nursery() as nursery:
        async with world.paused(claim_runs, world.engine_id, 2, LEASE_SECONDS) as first:
            nursery.start_soon(world.claim)
            await trio.sleep(0.1)
    assert len(first[0].leases) == 2
    states = [row["state"] for row in await world.rows("SELECT state FROM live_run")]
    assert sorted(states) == ["leased"] * 2 + ["parked"] * 4
    await world.assert_sound()


async def test_each_freed_slot_goes_to_the_run_that_waited_longest(database: Database) -> None:
    world = await make_world(database, function("f", "go", limit=1, key="k"))
    runs = [await world.start({"k": "a"}) for _ in range(4)]
    order = []
    for _ in runs:
        [lease] = await world.claim()
        order.append(lease.run_id)
        await world.say(lease, DONE, ends=True)
        await world.assert_sound()
    assert order == runs


async def test_a_cancelled_run_that_stood_promoted_gives_its_slot_on(database: Database) -> None:
    world = await make_world(database, function("f", "go", limit=1))
    first, second, third = [await world.start() for _ in range(3)]
    [lease] = await world.claim()
    await world.say(lease, DONE, ends=True)
    assert await world.state(second) == "ready"
    await database.transact(cancel_run, world.workspace_id, second)
    assert await world.state(third) == "ready"
    await world.assert_sound()
    assert first == lease.run_id


@pytest.mark.parametrize("last_ops", [(DONE,), ()], ids=["with a result", "with nothing to say"])
async def test_a_cancelled_run_keeps_its_slot_until_its_invocation_has_ended(
    database: Database, last_ops: tuple[Op, ...]
) -> None:
    world = await make_world(database, function("f", "go", limit=1))
    first, second = await world.start(), await world.start()
    [lease] = await world.claim()
    await database.transact(cancel_run, world.workspace_id, first)
    assert await world.state(first) == "cancelled" and await world.state(second) == "parked"
    assert (await world.say(lease, step("a"))).status == "cancelled"
    assert await world.memo(first) == []
    await world.assert_sound()
    assert (await world.say(lease, *last_ops, ends=True)).status == "cancelled"
    assert await world.state(second) == "ready"
    await world.assert_sound()


async def test_slots_of_a_dead_engine_come_back_two_seconds_after_its_lease(database: Database) -> None:
    world = await make_world(database, function("f", "go", limit=1))
    first, second = await world.start(), await world.start()
    await world.claim()
    await world.rows("UPDATE live_run SET due_at = clock_timestamp() - interval '1.5 s' WHERE state = 'leased'")
    await database.transact(reclaim_leases)
    assert await world.state(second) == "parked"
    await world.rows("UPDATE live_run SET due_at = clock_timestamp() - interval '2.1 s' WHERE state = 'leased'")
    await database.transact(reclaim_leases)
    assert {await world.state(first), await world.state(second)} == {"ready"}
    await world.claim()
    await world.assert_sound()
    assert sorted([await world.state(first), await world.state(second)]) == ["leased", "parked"]


async def test_a_wake_up_while_a_step_goes_brings_another_turn(database: Database) -> None:
    world = await make_world(database)
    run_id = await world.start()
    lease = await world.claim_one()
    await world.say(lease, wait("w", "approved"))
    await world.append(world.event("approved"))
    assert await world.state(run_id) == "leased"
    answer = await world.say(lease, step("a"), known=0)
    assert [entry.id for entry in answer.resolved] == ["w", "a"]
    await world.append(world.event("other"))
    await world.say(lease, wait("v", "other2"), known=2, ends=True)
    assert await world.state(run_id) == "waiting"


async def test_an_end_that_does_not_know_of_a_wake_up_is_followed_by_another_turn(database: Database) -> None:
    world = await make_world(database)
    run_id = await world.start()
    lease = await world.claim_one()
    await world.say(lease, wait("w", "approved"), wait("v", "never"))
    await world.append(world.event("approved"))
    await world.say(lease, known=0, ends=True)
    assert await world.state(run_id) == "ready"


async def test_an_event_sent_by_a_step_ends_a_wait_of_the_same_message(database: Database) -> None:
    world = await make_world(database, function("f", "go"), function("g", "sent"))
    run_id = await world.start()
    lease = await world.claim_one()
    answer = await world.say(lease, send("tell", ("sent", {"a": 1})), wait("hear", "sent", {"a": 1}))
    assert answer.status == "ok"
    assert sorted(entry[0] for entry in await world.memo(run_id)) == ["hear", "tell"]
    assert len(await world.rows("SELECT 1 FROM run")) == 2
    await world.say(lease, send("tell", ("sent", {"a": 1})), known=2)
    assert len(await world.rows("SELECT 1 FROM event WHERE name = 'sent'")) == 1
    await world.assert_sound()


async def test_a_stale_report_sends_nothing_and_gives_its_event_ids_back(database: Database) -> None:
    world = await make_world(database)
    await world.start()
    lease = await world.claim_one()
    await world.outcome(lease, HandedBack())
    assert (await world.say(lease, send("tell", ("sent", 1), ids=("mine",)))).status == "stale"
    assert await world.rows("SELECT 1 FROM event WHERE name = 'sent'") == []
    [answer] = (await world.append(world.event("sent", 1, "mine"))).answers
    assert not answer.is_duplicate


async def test_two_runs_that_send_to_each_other_at_once_do_not_deadlock(database: Database) -> None:
    world = await make_world(database)
    a, b = await world.start(), await world.start()
    leases = {lease.run_id: lease for lease in await world.claim()}
    await world.say(leases[a], wait("w", "ping", {"to": "a"}))
    await world.say(leases[b], wait("w", "ping", {"to": "b"}))

    async def tell(run: Any, to: str) -> None:
        for n in range(10):
            await world.say(leases[run], send(f"s{n}", ("ping", {"to": to})))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tell, a, "b")
        nursery.start_soon(tell, b, "a")
    await world.assert_sound()


async def test_a_hundred_concurrent_posts_of_one_event_id_make_one_run(database: Database) -> None:
    world = await make_world(database)
    answers: list[Any] = []

    async def post() -> None:
        answers.extend((await world.append(world.event("go", {"n": 1}, "once"))).answers)

    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(post)
    assert len({answer.runs for answer in answers}) == 1
    assert sum(not answer.is_duplicate for answer in answers) == 1
    assert len(await world.rows("SELECT 1 FROM run")) == 1
    [conflict] = (await world.append(world.event("go", {"n": 2}, "once"))).answers
    assert conflict.is_duplicate and conflict.is_conflict
    await world.assert_sound()


async def test_one_id_twice_in_one_request_is_one_event(database: Database) -> None:
    world = await make_world(database)
    first, second = (await world.append(world.event("go", 1, "x"), world.event("go", 1, "x"))).answers
    assert first.runs == second.runs and second.is_duplicate


async def test_cancel_against_complete_has_one_end(database: Database) -> None:
    world = await make_world(database)
    for _ in range(10):
        run_id = await world.start()
        lease = await world.claim_one()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.say, lease, DONE)
            nursery.start_soon(database.transact, cancel_run, world.workspace_id, run_id)
        [row] = await world.rows("SELECT count(*) AS n FROM run_end WHERE run_id = $1", run_id)
        assert row["n"] <= 1
        await world.outcome(lease, CallDied("x", "y"))
    await world.assert_sound()


@pytest.mark.parametrize("seed", [random.randrange(2**32)])
async def test_cancelling_any_statement_rolls_back_and_leaves_the_pool_whole(database: Database, seed: int) -> None:
    """A scope is cancelled at a random moment of each kind of transaction, many times; then all still works."""
    world = await make_world(database, function("f", "go", limit=3, key="k"))
    chance = random.Random(seed)
    works: list[Callable[[], Any]] = [
        lambda: world.append(
            world.event("go", {"k": chance.randrange(3)}), world.event("approved", {"id": 1}, f"e{chance.random()}")
        ),
        lambda: world.claim(3),
        lambda: database.transact(fire_timers),
        lambda: database.transact(reclaim_leases),
    ]

    async def report() -> None:
        for lease in await world.claim(2):
            await world.say(lease, step("a"), wait("w", "approved", {"id": 1}), Sleep("s", seconds=0.0), ends=True)

    works.append(report)
    for _ in range(300):
        with trio.move_on_after(chance.random() * 0.012), trio.CancelScope():
            with suppress(TransactionConflict, CommitUnknown):
                await chance.choice(works)()
    assert await world.rows("SELECT 1 AS one") == [{"one": 1}], f"seed {seed}"
    idle = await world.rows(
        "SELECT count(*) AS n FROM pg_stat_activity WHERE state LIKE 'idle in transaction%' AND datname = current_database()"
    )
    assert idle[0]["n"] == 0, f"seed {seed}"
    async with trio.open_nursery() as nursery:
        for _ in range(12):
            nursery.start_soon(world.rows, "SELECT pg_sleep(0.01)")
    await world.assert_sound()
