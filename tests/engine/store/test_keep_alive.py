"""Leases that an app renews, and who hears of what came to its runs: only after the commit, and only of leased runs."""

from __future__ import annotations

from uuid import UUID

import pytest
import trio
from msgspec import Raw

from engine.store.cancel_run import cancel_run
from engine.store.claim_runs import Lease
from engine.store.database import Database
from engine.store.fire_timers import fire_timers
from engine.store.hints import Hints
from engine.store.keep_alive import HeldRun, KeptLease, find_run_news, keep_alive, read_run_news
from engine.store.sql import Connection
from protocol.limits import CALL_BYTES_MAX, STEP_RESULT_BYTES_MAX
from protocol.ops import Complete, Sleep
from tests.engine.store.world import World, make_world, step, wait


@pytest.fixture
async def world(database: Database) -> World:
    return await make_world(database)


def held(lease: Lease, known: int = 0, seconds_max: float | None = None) -> HeldRun:
    return HeldRun(lease.run_id, lease.generation, known, seconds_max)


async def keep(world: World, *runs: HeldRun, lease_seconds: float = 30.0) -> dict[UUID, KeptLease]:
    return await world.database.transact(keep_alive, world.workspace_id, list(runs), lease_seconds)


async def leased(world: World, count: int) -> list[Lease]:
    for _ in range(count):
        await world.start()
    return await world.claim()


async def test_a_fresh_lease_is_not_written_again_and_a_cancelled_run_keeps_its_slots(world: World) -> None:
    fresh, cancelled = await leased(world, 2)
    before = await world.rows("SELECT run_id, xmin::text FROM live_run WHERE run_id = $1", fresh.run_id)
    await world.database.transact(cancel_run, world.workspace_id, cancelled.run_id)
    kept = await keep(world, held(fresh), held(cancelled))
    assert not kept[fresh.run_id].is_cancelled and kept[cancelled.run_id].is_cancelled
    assert before == await world.rows("SELECT run_id, xmin::text FROM live_run WHERE run_id = $1", fresh.run_id)
    await keep(world, held(cancelled), lease_seconds=90)
    [row] = await world.rows("SELECT due_at > now() + interval '80 s' AS is_long FROM live_run WHERE state = 'cancelled'")
    assert row["is_long"]
    await world.assert_sound()


async def test_many_polls_over_the_same_runs_in_any_order_do_not_lock_each_other_out(world: World) -> None:
    leases = await leased(world, 40)
    runs = [held(lease) for lease in leases]

    async def poll(order: list[HeldRun], lease_seconds: float) -> None:
        assert len(await keep(world, *order, lease_seconds=lease_seconds)) == 40

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(poll, runs if number % 2 else runs[::-1], 100.0 + 50 * number)
                nursery.start_soon(world.apply, *[world.report(lease, step(f"s{number}")) for lease in leases[number::8]])
    await world.assert_sound()


async def test_what_is_news_of_a_run_and_what_is_not(world: World) -> None:
    own, resolved, cancelled, over, lost = await leased(world, 5)
    await world.say(own, step("a"))
    await world.say(resolved, Sleep("s", seconds=0))
    await world.database.transact(fire_timers)
    await world.database.transact(cancel_run, world.workspace_id, cancelled.run_id)
    await world.say(over, Complete(Raw(b"1")), ends=True)
    runs = [held(lease) for lease in (own, resolved, cancelled, over, lost)]
    runs[4] = HeldRun(lost.run_id, lost.generation + 1, 0)
    news = await world.database.read(find_run_news, world.workspace_id, runs)
    assert (news.own, news.resolved, news.cancelled) == ({own.run_id: 1}, {resolved.run_id}, {cancelled.run_id})
    assert (news.over, news.stale) == ({over.run_id}, {lost.run_id})
    foreign = await world.database.read(find_run_news, world.workspace_id + 1, runs)
    assert foreign.stale >= {own.run_id, resolved.run_id, cancelled.run_id}
    assert await world.database.read(read_run_news, world.workspace_id + 1, runs) == {}
    assert not (await world.database.read(find_run_news, world.workspace_id, [held(own, known=1)])).is_for_app


async def test_the_memo_that_is_read_stops_where_an_answer_is_full(world: World) -> None:
    [lease] = await leased(world, 1)
    large = "x" * (STEP_RESULT_BYTES_MAX - 2)
    await world.say(lease, step("a", large), step("b", large), step("c", 3))
    for known, ids in ((0, ["a"]), (1, ["b"]), (2, ["c"])):
        news = await world.database.read(read_run_news, world.workspace_id, [held(lease, known)])
        assert [entry.id for entry in news[lease.run_id]] == ids
    assert STEP_RESULT_BYTES_MAX == CALL_BYTES_MAX


async def test_a_leased_run_is_named_after_the_commit_and_others_never(world: World) -> None:
    named: list[UUID] = []
    world.database.on_run_news = named.extend
    first, second = await leased(world, 2)
    await world.say(first, wait("w", "approved"))
    await world.say(second, wait("w", "approved"), ends=True)
    await world.append(world.event("approved"))
    assert named == [first.run_id]
    named.clear()

    async def cancel_and_fail(conn: Connection) -> None:
        await cancel_run(conn, world.workspace_id, first.run_id)
        raise LookupError

    with pytest.raises(LookupError):
        await world.database.transact(cancel_and_fail)
    assert named == []
    await world.database.transact(cancel_run, world.workspace_id, first.run_id)
    await world.database.transact(cancel_run, world.workspace_id, second.run_id)
    assert named == [first.run_id]
    await world.assert_sound()


async def test_a_watch_hears_of_its_own_runs_here_and_of_any_run_elsewhere() -> None:
    hints, told = Hints(), list[str]()
    hints.tell_others = told.append
    mine, others = UUID(int=1), UUID(int=2)

    async def is_given() -> bool:
        with trio.move_on_after(0.01):
            await hint.wait()
            return True
        return False

    with hints.watch_news([mine]) as hint:
        hints.runs_have_news([others])
        assert not await is_given() and told == ["run_news"]
        hints.runs_have_news([others, mine])
        assert await is_given()
        hints.heard("run_news")
        assert await is_given()
    hints.runs_have_news([mine])
    assert not await is_given()
