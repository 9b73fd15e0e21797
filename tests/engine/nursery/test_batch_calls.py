"""Several invocations in one call: each has its own outcome, whatever becomes of the others."""

from __future__ import annotations

import time

import pytest
import trio
from msgspec import Raw

from engine.core.outcome import HandedBack
from engine.nursery import call as call_module
from engine.nursery import run_call as run_call_module
from engine.nursery.dispatcher import claim_and_start
from engine.nursery.heartbeat import beat
from engine.store.database import Database
from protocol import signing
from protocol.calls import Ended, Started
from protocol.ops import Complete, Fail
from tests.engine.nursery.stand import AppCall, a_batch_app, an_engine, states, until
from tests.engine.store.world import World, make_world

pytestmark = [pytest.mark.postgres]


async def with_runs(database: Database, count: int) -> World:
    world = await make_world(database)
    await world.append(*(world.event("go", {"n": number}) for number in range(count)))
    return world


async def counters(world: World) -> list[tuple[str, int, int]]:
    """State, attempt and interruptions of the live runs."""
    rows = await world.rows("SELECT state, attempt, interruptions FROM live_run ORDER BY run_id")
    return [(row["state"], row["attempt"], row["interruptions"]) for row in rows]


async def test_runs_that_begin_together_travel_together_and_the_connection_is_kept(database: Database) -> None:
    world = await with_runs(database, 40)
    async with an_engine(world) as engine, a_batch_app(world, AppCall.complete, batch_max=16) as app:
        app.knows(engine)
        await claim_and_start(engine)
        await until(lambda: len(engine.inflight) == 0)
        assert sorted(app.sizes) == [8, 16, 16]
        await world.append(world.event("go"))
        await until(lambda: engine.apps._connections.idle_count == 3)
        await claim_and_start(engine)
        await until(lambda: len(engine.inflight) == 0)
        assert app.connections == 3
    assert await states(world) == {"completed": 41}
    await world.assert_sound()


async def test_a_call_stays_below_the_size_that_the_app_takes(database: Database) -> None:
    world = await make_world(database)
    await world.append(*(world.event("go", "x" * 300_000) for _ in range(8)))
    async with an_engine(world) as engine, a_batch_app(world, AppCall.complete, max_body=1 << 20) as app:
        app.knows(engine)
        await claim_and_start(engine)
        await until(lambda: len(engine.inflight) == 0)
        assert sum(app.sizes) == 8 and max(call.body_bytes for call in app.calls) < 1 << 20
        assert len(app.calls) == 3


async def test_each_invocation_of_a_call_ends_in_its_own_way(database: Database) -> None:
    world = await with_runs(database, 3)

    async def answer(call: AppCall) -> None:
        if len(call.invocations) == 1:
            return await call.complete()
        await call.begin()
        first, second, third = call.invocations
        await call.end(second, Fail(Raw(b'{"name":"No","message":"no"}'), retriable=False))
        await call.end(first)
        # Garbage that names its run is that run's alone.
        await call.raw(
            _signed(call, b'{"type":"ended","run_id":"%b","generation":1,"known":-1,"ops":[]}' % third.run_id.encode())
        )
        await call.finish()

    async with an_engine(world) as engine, a_batch_app(world, answer) as app:
        app.knows(engine)
        await claim_and_start(engine)
        await until(lambda: len(engine.inflight) == 0)
    assert await states(world) == {"completed": 1, "failed": 1, "ready": 1}
    assert await counters(world) == [("ready", 2, 0)]


async def test_one_of_three_that_is_ended_here_leaves_the_call_open_for_the_others(database: Database) -> None:
    world = await with_runs(database, 3)
    go = trio.Event()

    async def answer(call: AppCall) -> None:
        await call.begin()
        await go.wait()
        for invocation in call.invocations:
            await call.end(invocation)
        await call.finish()

    async with an_engine(world) as engine, a_batch_app(world, answer) as app:
        app.knows(engine)
        await claim_and_start(engine)
        await until(lambda: all(inflight.has_started for inflight in engine.inflight))
        next(iter(engine.inflight)).end("drain")
        await until(lambda: len(engine.inflight) == 2)
        assert app.closed == 0
        go.set()
        await until(lambda: len(engine.inflight) == 0)
        await until(lambda: engine.apps._connections.idle_count == 1)
    assert await states(world) == {"completed": 2, "ready": 1}
    assert await counters(world) == [("ready", 1, 0)]


async def test_a_step_timeout_ends_its_own_invocation_only(database: Database) -> None:
    world = await with_runs(database, 2)
    go = trio.Event()

    async def answer(call: AppCall) -> None:
        await call.begin()
        await go.wait()
        await call.end(call.invocations[1])
        await call.finish()

    async with an_engine(world) as engine, a_batch_app(world, answer) as app:
        app.knows(engine)
        await claim_and_start(engine)
        await until(lambda: all(inflight.has_started for inflight in engine.inflight))
        late = next(each for each in engine.inflight if str(each.run_id) == app.calls[0].invocations[0].run_id)
        late.scope.deadline = trio.current_time()
        await until(lambda: len(engine.inflight) == 1)
        go.set()
        await until(lambda: len(engine.inflight) == 0)
    assert await states(world) == {"completed": 1, "ready": 1}
    assert await counters(world) == [("ready", 2, 0)]


async def test_when_all_of_a_call_are_ended_here_its_connection_closes(database: Database) -> None:
    world = await with_runs(database, 3)

    async def answer(call: AppCall) -> None:
        await call.begin()
        await call.stream.receive_some()

    async with an_engine(world) as engine, a_batch_app(world, answer) as app:
        app.knows(engine)
        await claim_and_start(engine)
        await until(lambda: len(app.calls) == 1)
        engine.intake.drain()
        assert engine.intake.reserve(5) == 0
        engine.intake.end()
        await until(lambda: len(engine.inflight) == 0 and app.closed == 1)
        assert engine.apps._connections.idle_count == 0
    assert await counters(world) == [("ready", 1, 0)] * 3


async def test_an_app_that_dies_in_the_middle_interrupts_the_others_who_then_travel_alone(database: Database) -> None:
    world = await with_runs(database, 4)

    async def answer(call: AppCall) -> None:
        if len(call.invocations) == 1:
            return await call.complete()
        await call.begin()
        await call.end(call.invocations[0])
        await call.stream.aclose()

    async with an_engine(world) as engine, a_batch_app(world, answer) as app:
        app.knows(engine)
        await claim_and_start(engine)
        await until(lambda: len(engine.inflight) == 0)
        assert await states(world) == {"completed": 1, "ready": 3}
        assert await counters(world) == [("ready", 1, 1)] * 3
        await claim_and_start(engine)
        await until(lambda: len(engine.inflight) == 0)
        assert app.sizes == [4, 1, 1, 1]
    assert await states(world) == {"completed": 4}
    await world.assert_sound()


@pytest.mark.parametrize("garbage", [b"<html>\n", b"v1,x 1 {}\n", b"\xff" * 50 + b"\n", b"foreign"])
async def test_garbage_that_names_no_run_interrupts_all_who_have_not_ended(database: Database, garbage: bytes) -> None:
    world = await with_runs(database, 3)

    async def answer(call: AppCall) -> None:
        await call.begin()
        await call.end(call.invocations[2])
        if garbage == b"foreign":
            await call.say(Ended("01990000-0000-7000-8000-000000000000", 1, 0, [Complete(Raw(b"1"))]))
        else:
            await call.raw(garbage)
        await trio.sleep_forever()

    async with an_engine(world) as engine, a_batch_app(world, answer) as app:
        app.knows(engine)
        await claim_and_start(engine)
        await until(lambda: len(engine.inflight) == 0)
    assert await states(world) == {"completed": 1, "ready": 2}
    assert await counters(world) == [("ready", 1, 1)] * 2


async def test_the_line_of_another_generation_is_its_runs_fault_alone(database: Database) -> None:
    world = await with_runs(database, 2)

    async def answer(call: AppCall) -> None:
        await call.begin()
        wrong, right = call.invocations
        await call.say(Started(wrong.run_id, wrong.generation + 1))
        await call.end(right)
        await call.finish()

    async with an_engine(world) as engine, a_batch_app(world, answer) as app:
        app.knows(engine)
        await claim_and_start(engine)
        await until(lambda: len(engine.inflight) == 0)
    assert await states(world) == {"completed": 1, "ready": 1}
    assert await counters(world) == [("ready", 2, 0)]


async def test_the_second_end_of_a_run_is_not_listened_to(database: Database) -> None:
    world = await with_runs(database, 2)

    async def answer(call: AppCall) -> None:
        await call.begin()
        await call.end(call.invocations[0])
        await call.end(call.invocations[0], Fail(Raw(b'{"name":"No","message":"no"}'), retriable=False))
        await call.end(call.invocations[1])
        await call.finish()

    async with an_engine(world) as engine, a_batch_app(world, answer) as app:
        app.knows(engine)
        await claim_and_start(engine)
        await until(lambda: len(engine.inflight) == 0)
    assert await states(world) == {"completed": 2}


async def test_an_app_that_never_stops_talking_of_what_has_ended_is_cut_off(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call_module, "USELESS_LINES_MAX", 20)
    world = await with_runs(database, 2)

    async def answer(call: AppCall) -> None:
        await call.begin()
        while True:
            await call.end(call.invocations[0])

    async with an_engine(world) as engine, a_batch_app(world, answer) as app:
        app.knows(engine)
        await claim_and_start(engine)
        await until(lambda: len(engine.inflight) == 0)
    assert await counters(world) == [("ready", 1, 1)]


async def test_a_call_that_is_not_delivered_counts_for_nobody(database: Database) -> None:
    world = await with_runs(database, 3)

    async def answer(call: AppCall) -> None:
        await call.stream.send_all(b"HTTP/1.1 429 Slow down\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n")

    async with an_engine(world) as engine, a_batch_app(world, answer) as app:
        app.knows(engine)
        await claim_and_start(engine)
        await until(lambda: len(engine.inflight) == 0)
        assert engine.inflight.pace(world.workspace_id).cap == 16
    assert await counters(world) == [("ready", 1, 0)] * 3
    assert len(await world.rows("SELECT 1 FROM lane_hold")) == 1


async def test_an_app_that_answers_late_keeps_its_invocations_and_gets_single_calls_from_then_on(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_call_module, "PROMPT_SECONDS", 0.1)
    world = await with_runs(database, 3)
    go = trio.Event()

    async def answer(call: AppCall) -> None:
        if len(call.invocations) > 1:
            await go.wait()
        await call.complete()

    async with an_engine(world) as engine, a_batch_app(world, answer) as app:
        app.knows(engine)
        await claim_and_start(engine)
        pace = engine.inflight.pace(world.workspace_id)
        await until(lambda: pace.gets_single_calls(trio.current_time()))
        await world.append(world.event("go"), world.event("go"))
        await claim_and_start(engine)
        await until(lambda: len(engine.inflight) == 3)
        go.set()
        await until(lambda: len(engine.inflight) == 0)
        assert app.sizes == [3, 1, 1]
        pace.single_until = trio.current_time()
        await world.append(world.event("go"), world.event("go"))
        await claim_and_start(engine)
        await until(lambda: len(engine.inflight) == 0)
        assert app.sizes == [3, 1, 1, 2]
    assert await states(world) == {"completed": 7}


async def test_the_engine_renews_what_the_app_does_not_and_hears_of_what_the_app_renews(database: Database) -> None:
    world = await with_runs(database, 2)
    go = trio.Event()

    async def answer(call: AppCall) -> None:
        await call.begin()
        await go.wait()
        await trio.sleep_forever()

    async with an_engine(world) as engine, a_batch_app(world, answer, has_alive=True) as app:
        app.knows(engine)
        await claim_and_start(engine)
        first, second = list(engine.inflight)
        await until(lambda: first.has_started and second.has_started)
        await world.rows("UPDATE live_run SET due_at = clock_timestamp() + interval '7 seconds' RETURNING 1")
        second.outcome = HandedBack()
        await beat(engine)
        seconds_left = await world.rows(
            "SELECT run_id, extract(epoch FROM due_at - clock_timestamp())::float8 AS s FROM live_run"
        )
        left = {row["run_id"]: row["s"] for row in seconds_left}
        assert left[first.run_id] <= 7 < 20 < left[second.run_id], "an end that waits to be written is the engine's to keep"
        assert first.lease_ends_at < trio.current_time() + 8
        second.outcome = None
        await world.rows("UPDATE live_run SET generation = generation + 1 WHERE run_id = $1 RETURNING 1", first.run_id)
        await beat(engine)
        assert first.end_cause == "lease_lost" and second.end_cause is None


def _signed(call: AppCall, text: bytes) -> bytes:
    return signing.sign_line(call.key, call.request_id, int(time.time()), text)
