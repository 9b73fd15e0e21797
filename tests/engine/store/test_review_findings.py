"""Faults that a review found in the store, each shown by what the store does with real rows."""

from __future__ import annotations

import asyncio

import pytest
import trio
from msgspec import Raw

from engine.core.outcome import Reported, Undelivered
from engine.core.run import MEMO_BYTES_MAX
from engine.store.apply_outcomes import RunReport, apply_outcomes
from engine.store.claim_runs import claim_runs
from engine.store.database import Database, DatabaseUnavailable, StatementTimedOut
from engine.store.fire_timers import FIRED_PER_GROUP_MAX, fire_timers
from engine.store.group_writer import GroupWriter
from engine.store.hold_lanes import free_lanes
from engine.store.pay_promotions import pay_promotions
from engine.store.release_slots import lock_keys
from engine.store.sql import Connection
from protocol.ops import Complete, Sleep
from tests.engine.store.world import LEASE_SECONDS, function, make_world, send, step, wait

DONE = Complete(Raw(b"1"))


async def test_the_end_of_a_generation_beyond_every_lease_is_stale(database: Database) -> None:
    world = await make_world(database)
    run_id = await world.start()
    await world.claim_one()
    report = RunReport(world.workspace_id, run_id, 2**53 - 1, Reported((DONE,), 0, True))
    [answer] = (await world.apply(report)).answers
    assert answer.status == "stale"


async def test_a_run_whose_memo_was_filled_beyond_its_limit_by_events_can_still_end(database: Database) -> None:
    world = await make_world(database)
    run_id = await world.start()
    lease = await world.claim_one()
    await world.rows("UPDATE live_run SET memo_bytes = $1 RETURNING 1", MEMO_BYTES_MAX + 1)
    assert (await world.say(lease, step("one_more"))).status == "refused"
    assert (await world.say(lease, DONE, ends=True)).status == "ok"
    assert await world.state(run_id) == "completed"


async def test_a_wait_whose_condition_does_not_compile_is_refused_and_poisons_no_event(database: Database) -> None:
    world = await make_world(database)
    await world.start()
    answer = await world.say(await world.claim_one(), wait("w", "approved", if_="((event"), ends=True)
    appended = await world.append(world.event("approved", {"id": 7}))
    assert len(appended.answers) == 1
    assert answer.status == "refused" and answer.error.code == "wait_refused"


async def test_lanes_take_turns_while_there_is_room_for_one_run_only(database: Database) -> None:
    world = await make_world(database, function("a", "go"), function("b", "go"), function("c", "go"))
    for _ in range(4):
        await world.append(world.event("go"))
    after_lane, lanes = 0, []
    for _ in range(6):
        claimed = await database.transact(claim_runs, world.engine_id, 1, LEASE_SECONDS, after_lane)
        after_lane = claimed.last_lane
        lanes += [lease.function_id for lease in claimed.leases]
    assert len(lanes) == 6 and len(set(lanes[:3])) == 3 and len(set(lanes[3:])) == 3


async def test_paying_a_promotion_beside_a_release_that_owes_the_same_does_not_deadlock(database: Database) -> None:
    world = await make_world(database, function("f", "go", limit=1))
    for _ in range(2):
        await world.start()
    holder = await world.claim_one()
    await world.claim()
    [key] = await world.rows("SELECT limit_key_id FROM limit_key")
    await world.rows("INSERT INTO promotion (limit_key_id) VALUES ($1) RETURNING limit_key_id", key["limit_key_id"])
    failures: list[Exception] = []

    async def hold_parked_run(conn: Connection) -> None:
        # A lock on the waiting run makes the release owe its promotion.
        await conn._raw.fetch("SELECT 1 FROM live_run WHERE state = 'parked' FOR UPDATE")

    async def release_slowly(conn: Connection) -> None:
        await lock_keys(conn, [key["limit_key_id"]])
        await asyncio.sleep(0.3)
        await apply_outcomes(conn, [world.report(holder, DONE, ends=True)], LEASE_SECONDS)

    async def run(work) -> None:  # type: ignore[no-untyped-def]
        try:
            await database.transact(work)
        except Exception as error:
            failures.append(error)

    async with world.paused(hold_parked_run):
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run, release_slowly)
                await trio.sleep(0.15)
                nursery.start_soon(run, pay_promotions)
    assert not failures
    await database.transact(pay_promotions)
    await world.assert_sound()


async def test_an_event_is_sent_although_a_stale_report_of_the_group_names_the_same_id(database: Database) -> None:
    world = await make_world(database)
    await world.start()
    await world.start()
    leases = sorted(await world.claim(), key=lambda lease: lease.run_id)
    for first in (0, 1):
        stale, good = leases[first], leases[1 - first]
        op = send(f"s{first}", ("hello", 1), ids=(f"x{first}",))
        old = world.report(stale, op)
        old = RunReport(old.workspace_id, old.run_id, old.generation + 5, old.outcome)
        await world.apply(old, world.report(good, op))
    rows = await world.rows("SELECT external_id FROM event WHERE name = 'hello' ORDER BY 1")
    assert [row["external_id"] for row in rows] == ["x0", "x1"]


async def test_a_call_that_gets_through_does_not_let_go_a_lane_whose_function_is_unknown(database: Database) -> None:
    world = await make_world(database)
    await world.start()
    await world.outcome(await world.claim_one(), Undelivered("unknown_function", "no", others_succeed=True))
    await database.transact(free_lanes, world.workspace_id)
    assert await world.claim() == []


async def test_two_engines_that_hold_lanes_of_two_apps_do_not_deadlock(database: Database) -> None:
    world = await make_world(database, function("a", "go"), function("b", "go"))
    await world.append(world.event("go"))
    await world.append(world.event("go"))
    leases = sorted(await world.claim(), key=lambda lease: (lease.function_id, lease.run_id))
    down = Undelivered("unknown_function", "no", others_succeed=True)
    reports = [RunReport(world.workspace_id, lease.run_id, lease.generation, down) for lease in leases]
    statements: list[int] = []

    async def spy(conn: Connection) -> None:
        await apply_outcomes(conn, [reports[2], reports[0], reports[1]], LEASE_SECONDS)
        rows = await conn._raw.fetch("SELECT function_id FROM lane_hold ORDER BY ctid")
        statements.extend(row["function_id"] for row in rows)

    await database.transact(spy)
    assert statements == sorted(statements)


async def test_more_timers_are_due_when_a_group_was_full_although_runs_had_several(database: Database) -> None:
    world = await make_world(database)
    count = FIRED_PER_GROUP_MAX // 2 + 10
    await world.append(*(world.event("go") for _ in range(count)))
    leases = await world.claim(count)
    await world.apply(*(world.report(lease, Sleep("a", 0.0), Sleep("b", 0.0), ends=True) for lease in leases))
    fired = await database.transact(fire_timers)
    left = await world.rows("SELECT count(*) AS n FROM wait")
    assert left[0]["n"] == 0 or fired.has_more


async def test_a_connection_that_the_server_ended_for_idling_is_a_lost_database(database: Database) -> None:
    async def idle(conn: Connection) -> None:
        await conn._raw.execute("SET LOCAL idle_in_transaction_session_timeout = '100ms'")
        await asyncio.sleep(0.4)
        await conn._raw.execute("SELECT 1")

    with pytest.raises(DatabaseUnavailable):
        await database.transact(idle)


async def test_a_row_whose_statement_always_takes_too_long_blocks_no_other(autojump_clock: object) -> None:
    async def flush(rows, is_repeated):  # type: ignore[no-untyped-def]
        if 5 in rows:
            raise StatementTimedOut("canceling statement due to statement timeout")
        return ["ok"] * len(rows)

    writer: GroupWriter[int, str] = GroupWriter("test", flush)
    outcomes: dict[int, object] = {}

    async def submit(row: int) -> None:
        try:
            outcomes[row] = await writer.submit(row)
        except Exception as error:
            outcomes[row] = type(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.serve)
        with trio.fail_after(60):
            async with trio.open_nursery() as senders:
                for row in range(10):
                    senders.start_soon(submit, row)
        nursery.cancel_scope.cancel()
    assert outcomes[5] is StatementTimedOut and all(outcomes[row] == "ok" for row in range(10) if row != 5)
