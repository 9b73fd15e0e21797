"""How much an app is given, and that one which swallows its calls leaves room for all others."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

import pytest
import trio
import trio.testing
from msgspec import Raw

from engine.nursery import dispatcher
from engine.nursery.app_pace import CAP_AT_FIRST, FAILURES_MAX, PROMPT_SECONDS, AppPace
from engine.nursery.context import EngineContext
from engine.nursery.dispatcher import claim_and_start, serve_dispatcher
from engine.nursery.inflight import Inflight, InflightRuns
from engine.nursery.intake import make_inflight
from engine.store.database import Database
from engine.store.lease import Lease
from engine.store.read_invocations import Handover
from engine.store.sync_app import sync_app
from engine.store.workspaces import find_or_create_workspace
from engine.transport import app_client
from protocol.calls import Event, Invocation
from protocol.manifest import Batch, Capabilities, Manifest, Workspace
from tests.engine.nursery.stand import AppCall, a_batch_app, a_server, an_engine, until
from tests.engine.store.world import World, function, make_world


def an_inflight(number: int) -> Inflight:
    """An invocation of the workspace 1."""
    run_id = UUID(int=number)
    event = Event("e", "go", Raw(b"1"), datetime.now(UTC))
    invocation = Invocation(str(run_id), 1, 1, "f", event, 30.0)
    return make_inflight(Handover(Lease(run_id, 1, 1, 1, 0, 1), "shop", "dev", None, function("f"), invocation, 100), 0.0)


def test_a_cap_grows_with_what_is_taken_in_time_and_halves_once_for_calls_that_failed_together() -> None:
    pace = AppPace(cap_max=100, bytes_max=1_000)
    for _ in range(40):
        pace.took(sent_at=0, now=1)
    assert pace.cap == CAP_AT_FIRST + 40
    pace.took(sent_at=0, now=6)
    assert pace.cap == CAP_AT_FIRST + 40, "taken late asks for no more"
    for _ in range(3):
        pace.failed(sent_at=5, now=10, is_answered=True)
    assert pace.cap == 36 and not pace.is_away
    for _ in range(500):
        pace.took(sent_at=11, now=12)
    assert pace.cap == 100


def test_an_app_that_does_not_answer_is_asked_by_one_probe_at_a_time_with_growing_pauses() -> None:
    pace = AppPace(cap_max=100, bytes_max=1_000)
    now = 0.0
    for _ in range(FAILURES_MAX):
        assert not pace.is_away
        pace.failed(sent_at=now, now=now + 1, is_answered=False)
        now += 2
    pauses = []
    for _ in range(9):
        assert pace.is_away and pace.room(pace.asks_again_at) == 1
        assert pace.room(pace.asks_again_at - 0.01) == 0
        now = pace.asks_again_at
        pace.is_probing = True
        assert pace.room(now) == 0, "one at a time"
        pace.failed(sent_at=now, now=now + 0.01, is_answered=False)
        pauses.append(round(pace.asks_again_at - now - 0.01, 3))
    assert pauses == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    pace.took(sent_at=now, now=now + 10)
    assert not pace.is_away and pace.room(now) == int(pace.cap)


def test_an_answer_that_is_no_good_is_an_answer_and_ends_the_probing() -> None:
    """A call that goes on beside it keeps the workspace counted, so that nothing else would."""
    pace = AppPace(cap_max=100, bytes_max=1_000, runs=1)
    for now in (0, 2, 4):
        pace.failed(sent_at=now, now=now + 1, is_answered=False)
    assert pace.is_away
    pace.is_probing = True
    pace.failed(sent_at=10, now=11, is_answered=True)
    assert not pace.is_away and pace.is_troubled and 0 < pace.room(11) < CAP_AT_FIRST


@pytest.mark.postgres
async def test_a_black_hole_holds_up_nobody_else(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes connections and calls, and answers nothing."""
    monkeypatch.setattr(app_client, "SILENCE_SECONDS_MAX", 0.5)
    world = await make_world(database)
    hole = World(database, await database.transact(find_or_create_workspace, "hole", "dev"), world.engine_id)

    async def swallow(stream: trio.SocketStream) -> None:
        while await stream.receive_some():
            pass

    async with an_engine(world, runs_max=256) as engine, a_server(swallow) as hole_url:
        async with a_batch_app(world, AppCall.complete) as app:
            app.knows(engine)
            await sync_hole(hole, hole_url)
            await hole.append(*(hole.event("go") for _ in range(600)))
            most_in_hole = 0
            async with trio.open_nursery() as intake:
                await intake.start(serve_dispatcher, engine)
                pace = engine.inflight.pace(hole.workspace_id)
                await until(lambda: pace.runs > 0)
                for turn in range(12):
                    await world.append(*(world.event("go") for _ in range(50)))
                    engine.hints.run_due.give()
                    await until(lambda sent=50 * (turn + 1): sum(app.sizes) == sent)
                    most_in_hole = max(most_in_hole, pace.runs)
                    await trio.sleep(0.1)
                # What is asked of it shrinks to probes.
                await until(lambda: pace.is_away and pace.runs <= 1)
                assert pace.cap < CAP_AT_FIRST
                intake.cancel_scope.cancel()
            assert most_in_hole <= engine.inflight.claim_max
    rows = await world.rows("SELECT count(*) AS n FROM run_end WHERE status = 'completed'")
    assert rows[0]["n"] == 600


@pytest.mark.postgres
async def test_an_app_that_comes_back_is_found_and_gets_all_again(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_client, "SILENCE_SECONDS_MAX", 0.1)
    world = await make_world(database)
    is_back = False

    async def answer(call: AppCall) -> None:
        if is_back:
            return await call.complete()
        await trio.sleep_forever()

    async with an_engine(world) as engine, a_batch_app(world, answer, function("f", "go", retries=90), batch_max=1) as app:
        app.knows(engine)
        await world.append(*(world.event("go") for _ in range(20)))
        async with trio.open_nursery() as intake:
            await intake.start(serve_dispatcher, engine)
            intake.start_soon(look_again, engine)
            await until(lambda: engine.inflight.pace(world.workspace_id).is_away)
            seen = len(app.calls)
            await until(lambda: len(app.calls) >= seen + 2)
            assert set(app.sizes[seen + 1 :]) == {1}, "one probe at a time"
            is_back = True
            for _ in range(400):
                rows = await world.rows("SELECT count(*) AS n FROM run_end WHERE status = 'completed'")
                if rows[0]["n"] == 20:
                    break
                await trio.sleep(0.05)
            assert rows[0]["n"] == 20
            intake.cancel_scope.cancel()
    await world.assert_sound()


async def look_again(engine: EngineContext) -> None:
    """The lookout's part."""
    while True:
        await trio.sleep(0.05)
        engine.hints.run_due.give()


@pytest.mark.postgres
async def test_what_is_in_flight_is_bounded_by_bytes_too(database: Database) -> None:
    world = await make_world(database)
    await world.append(*(world.event("go", "x" * 100_000) for _ in range(60)))
    go = trio.Event()

    async def answer(call: AppCall) -> None:
        await go.wait()
        await call.complete()

    async with an_engine(world, bytes_in_flight_max=2_000_000) as engine, a_batch_app(world, answer) as app:
        app.knows(engine)
        engine.inflight._expected_bytes = 100_000.0
        for _ in range(10):
            await claim_and_start(engine)
        assert 10 < len(engine.inflight) < 60 and engine.inflight.size_bytes < 2_300_000
        assert engine.intake.full_workspaces() == [world.workspace_id]
        go.set()
        for _ in range(200):
            await claim_and_start(engine)
            if len(await world.rows("SELECT 1 FROM run_end")) == 60:
                break
            await trio.sleep(0.02)
        await until(lambda: len(engine.inflight) == 0)
        assert engine.inflight.size_bytes == 0 and sum(app.sizes) == 60


@pytest.mark.postgres
async def test_reserved_places_are_nobodys_else_and_come_back(database: Database) -> None:
    world = await make_world(database)
    await world.append(*(world.event("go") for _ in range(8)))

    async def hang(call: AppCall) -> None:
        await trio.sleep_forever()

    async with an_engine(world, runs_max=8) as engine, a_batch_app(world, hang) as app:
        app.knows(engine)
        assert engine.intake.reserve(100) == engine.inflight.claim_max == 2
        for _ in range(10):
            await claim_and_start(engine)
        assert len(engine.inflight) == 6, "two are reserved"
        engine.intake.give_back(2)
        await claim_and_start(engine)
        assert len(engine.inflight) == 7, "one place stays for other apps"


@pytest.mark.postgres
async def test_what_was_leased_while_the_drain_began_is_started_or_handed_back_at_once(database: Database) -> None:
    world = await make_world(database)
    await world.append(world.event("go"), world.event("go"))
    async with an_engine(world) as engine, a_batch_app(world, AppCall.complete) as app:
        app.knows(engine)
        assert engine.intake.reserve(2) == 2
        claimed = await world.database.transact(dispatcher.claim_runs, engine.engine_id, 2, 30.0)
        engine.intake.drain()
        assert engine.intake.reserve(1) == 0
        emptied = trio.Event()
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                await engine.inflight.wait_empty()
                emptied.set()

            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            assert not emptied.is_set(), "a drain waits for transactions that may still lease runs"
            engine.intake.start(claimed.handovers[:1], trio.current_time())
            engine.intake.end()
            engine.intake.start(claimed.handovers[1:], trio.current_time())
        assert emptied.is_set()
    rows = await world.rows("SELECT state, attempt, interruptions FROM live_run")
    assert all((row["state"], row["attempt"], row["interruptions"]) == ("ready", 1, 0) for row in rows)


async def sync_hole(hole: World, url: str) -> None:
    manifest = Manifest(Workspace("hole", "dev"), [1], [function("f", "go")], capabilities=Capabilities(True, Batch(64)))
    await hole.database.transact(sync_app, hole.workspace_id, url, manifest)


async def test_an_app_that_took_all_it_was_given_gets_one_more_however_low_its_cap_has_fallen() -> None:
    """Its runs may go on for hours; without this none would begin beside them."""
    runs = InflightRuns(64)
    given = [an_inflight(number) for number in range(40)]
    for inflight in given:
        runs.add(inflight)
        runs.took(inflight, sent_at=trio.current_time())
    pace = runs.pace(1)
    for _ in range(6):
        now = trio.current_time()
        pace.failed(sent_at=now, now=now, is_answered=True)
    assert pace.cap < 2 and pace.room(now) == 1
    told: list[None] = []
    runs.on_room = lambda: told.append(None)
    runs.add(another := an_inflight(40))
    assert pace.room(now) == 0, "one at a time"
    runs.took(another, sent_at=now - PROMPT_SECONDS - 1)
    assert pace.room(now) == 1 and len(told) == 1
    runs.remove(another)
    runs.add(lost := an_inflight(41))
    runs.remove(lost)
    assert pace.untaken == 0 and pace.room(now) == 1
    for number in range(42, 42 + runs.app_max - 40):
        runs.add(inflight := an_inflight(number))
        runs.took(inflight, sent_at=now)
    assert pace.room(now) == 0, "nor more than one app may have at most"


async def test_a_probe_that_ends_otherwise_lets_the_next_one_go_though_others_are_under_way() -> None:
    runs = InflightRuns(64)
    runs.add(an_inflight(1))
    pace = runs.pace(1)
    for _ in range(FAILURES_MAX):
        now = trio.current_time()
        pace.failed(sent_at=now, now=now, is_answered=False)
    runs.add(probe := an_inflight(2))
    probe.is_probe = pace.is_probing = True
    assert pace.room(pace.asks_again_at) == 0
    runs.remove(probe)
    assert pace.room(pace.asks_again_at) == 1
