"""Faults that a review found in who runs what: each with a real database, and apps that are real sockets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import trio
import trio.lowlevel
from msgspec import Raw

from engine.core.outcome import Reported
from engine.nursery import dispatcher
from engine.nursery.app_watch import look
from engine.nursery.dispatcher import claim_and_start, serve_dispatcher
from engine.nursery.inflight import InflightRuns
from engine.nursery.intake import make_inflight
from engine.nursery.invocation import _submit
from engine.store.database import Database, DatabaseUnavailable
from engine.store.read_invocations import Handover, read_invocations
from engine.store.sql import Connection
from engine.transport.app_client import Died
from protocol.ops import Complete
from tests.engine.nursery.stand import DEV, an_app, an_engine
from tests.engine.store.world import World, make_world


async def hang(stream: trio.SocketStream) -> None:
    await trio.sleep_forever()


async def test_a_drained_dispatcher_claims_nothing_more_although_much_is_due(database: Database) -> None:
    world = await make_world(database)
    await world.append(*(world.event("go") for _ in range(12)))
    async with an_engine(world, runs_max=1_000) as engine, an_app(world, hang):
        async with trio.open_nursery() as intake:
            # One a claim, as where each lane has a little; cancelled while the first is under way.
            engine.inflight.__class__ = OneAtATime
            intake.start_soon(serve_dispatcher, engine)
            while not len(engine.inflight):
                await trio.lowlevel.checkpoint()
            intake.cancel_scope.cancel()
        assert len(engine.inflight) <= 2


class OneAtATime(InflightRuns):
    @property
    def claim_max(self) -> int:
        return 1


async def test_claims_in_a_row_never_take_more_runs_than_may_be_under_way_and_one_app_leaves_room(database: Database) -> None:
    world = await make_world(database)
    await world.append(*(world.event("go") for _ in range(30)))
    async with an_engine(world, runs_max=8) as engine, an_app(world, hang):
        for _ in range(8):
            await claim_and_start(engine)
        assert len(engine.inflight) == 7, "an app with nearly all places gets no more"
        assert engine.intake.full_workspaces() == [world.workspace_id] and engine.intake.reserve(9) == 1


async def test_a_database_that_hangs_in_a_claim_does_not_end_the_dispatcher(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = await make_world(database)
    await world.start()
    monkeypatch.setattr(dispatcher, "HANDOVER_SECONDS_MAX", 0.3)

    async def lock(conn: Connection) -> None:
        await conn._raw.execute("LOCK TABLE live_run IN ACCESS EXCLUSIVE MODE")

    async with an_engine(world) as engine:
        async with world.paused(lock):
            assert await claim_and_start(engine) == (0, 0)
        assert engine.inflight.reserved == 0


async def test_a_lease_that_is_over_is_not_handed_over(database: Database) -> None:
    world = await make_world(database)
    await world.start()
    lease = await world.claim_one()
    assert len(await database.transact(read_invocations, [lease])) == 1
    await world.rows("UPDATE live_run SET state = 'ready', due_at = NULL RETURNING 1")
    await world.claim()
    assert await database.transact(read_invocations, [lease]) == []


class Away:
    """A database that is away for reading keys."""

    async def read(self, *args: object) -> object:
        raise DatabaseUnavailable("away")


async def handed_over(world: World) -> Handover:
    await world.start()
    [handover] = await world.database.transact(read_invocations, [await world.claim_one()])
    return handover


async def test_a_database_that_is_lost_before_the_call_ends_no_engine_and_counts_nothing(database: Database) -> None:
    world = await make_world(database)
    handover = await handed_over(world)
    async with an_engine(world) as engine:
        engine.keyring._database = Away()  # type: ignore[assignment]
        assert engine.intake.reserve(1) == 1
        engine.intake.start([handover], trio.current_time())
        await engine.inflight.wait_empty()
        assert await look(engine, "http://127.0.0.1:1/", DEV) == ("", False)
    assert await world.state(handover.lease.run_id) == "ready"
    assert [row["attempt"] for row in await world.rows("SELECT attempt FROM live_run")] == [1]


async def test_a_report_that_can_not_be_written_interrupts_its_run_and_no_engine(database: Database) -> None:
    world = await make_world(database)
    handover = await handed_over(world)
    async with an_engine(world) as engine:
        flush = engine.reports._flush

        async def poisoned(rows: Sequence[Any], is_repeated: bool) -> Any:
            if any(isinstance(row.outcome, Reported) for row in rows):
                raise ValueError("poison")
            return await flush(rows, is_repeated)

        engine.reports._flush = poisoned  # type: ignore[method-assign]
        outcome = Reported((Complete(Raw(b"1")),), 0, True)
        assert (await _submit(engine, make_inflight(handover, 0), outcome)).status == "ok"
    rows = await world.rows("SELECT state, interruptions FROM live_run")
    assert [(row["state"], row["interruptions"]) for row in rows] == [("ready", 1)]


async def test_an_outcome_waits_while_the_writer_has_too_many_rows(database: Database) -> None:
    world = await make_world(database)
    handover = await handed_over(world)
    async with an_engine(world) as engine:
        engine.reports._rows_waiting_max = 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_submit, engine, make_inflight(handover, 0), Reported((Complete(Raw(b"1")),), 0, True))
            await trio.sleep(0.1)
            engine.reports._rows_waiting_max = 10
    assert await world.state(handover.lease.run_id) == "completed"


async def test_a_manifest_that_is_too_large_or_never_ends_is_a_sentence(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.transport.app_client.BODY_BYTES_MAX", 1_000)
    monkeypatch.setattr("engine.transport.app_client.MANIFEST_SECONDS_MAX", 1.0)
    world = await make_world(database)

    async def pour(stream: trio.SocketStream) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n" + b"x" * 5_000)
        await trio.sleep_forever()

    async def drip(stream: trio.SocketStream) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
        while True:
            await stream.send_all(b"x")
            await trio.sleep(0.1)

    async with an_engine(world) as engine:
        keys = engine.keyring.may_be_anyones("dev")
        for serve, code in ((pour, "bad_reply"), (drip, "manifest_timeout")):
            async with an_app(world, serve) as url:
                with trio.fail_after(5):
                    answer = await engine.apps.ask_manifest(url, DEV, keys)
                assert isinstance(answer, Died) and answer.code == code


async def test_the_former_call_of_a_run_that_is_leased_again_ends(database: Database) -> None:
    world = await make_world(database)
    handover = await handed_over(world)
    async with an_engine(world) as engine:
        first, second = make_inflight(handover, 0), make_inflight(handover, 0)
        engine.inflight.add(first)
        engine.inflight.add(second)
        assert first.end_cause == "lease_lost" and second.end_cause is None
        engine.inflight.remove(first)
        assert len(engine.inflight) == 1
