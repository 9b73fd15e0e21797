"""The writer of events: what it hands over to the intake, and which places it gives back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from engine.nursery.call import Call
from engine.nursery.group_writers import HandingOver, make_event_writer
from engine.nursery.inflight import InflightRuns
from engine.nursery.intake import Intake
from engine.store.append_events import AppendedEvent, NewEvent
from engine.store.database import CommitUnknown, Database
from engine.store.group_writer import GroupWriter
from engine.store.hints import Hints
from tests.engine.store.world import LEASE_SECONDS, World, function, make_world


class Engine:
    """A writer of events with an intake whose calls are only collected."""

    def __init__(self, world: World, runs_max: int = 64) -> None:
        self.hints = Hints()
        self.inflight = InflightRuns(runs_max)
        self.intake = Intake(self.inflight)
        self.calls: list[Call] = []
        self.intake.open(self.calls.append)
        handing_over = HandingOver(world.engine_id, LEASE_SECONDS, self.intake)
        self.events: GroupWriter[NewEvent, AppendedEvent] = make_event_writer(world.database, self.hints, handing_over)

    @property
    def started(self) -> list[str]:
        """The runs that were started."""
        return [inflight.handover.invocation.run_id for inflight in self.inflight]

    @property
    def was_told_of_due_runs(self) -> bool:
        return self.hints.run_due._event.is_set()


@asynccontextmanager
async def serving(engine: Engine) -> AsyncIterator[Engine]:
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.events.serve)
        yield engine
        nursery.cancel_scope.cancel()


async def test_new_runs_are_started_without_a_claim_and_unused_places_come_back(database: Database) -> None:
    world = await make_world(database)
    async with serving(Engine(world)) as engine:
        answers = await engine.events.submit_all([world.event("go"), world.event("nobody"), world.event("go")])
        runs = [str(run_id) for answer in answers for run_id, _ in answer.runs]
        assert sorted(engine.started) == sorted(runs) and len(runs) == 2
        assert engine.inflight.reserved == 0 and not engine.was_told_of_due_runs
    assert {row["state"] for row in await world.rows("SELECT state FROM live_run")} == {"leased"}
    await world.assert_sound()


async def test_what_can_not_be_handed_over_is_left_to_a_claim(database: Database) -> None:
    world = await make_world(database, function("f", "go", limit=1), function("g", "go"))
    async with serving(Engine(world)) as engine:
        await engine.events.submit(world.event("go"))
        assert len(engine.started) == 1 and engine.was_told_of_due_runs
    await world.assert_sound()


@pytest.mark.parametrize("is_open", [True, False])
async def test_an_intake_that_drains_or_is_not_open_yet_gets_nothing(database: Database, is_open: bool) -> None:
    world = await make_world(database)
    engine = Engine(world)
    if is_open:
        engine.intake.drain()
    else:
        engine.intake._start_call = None
    async with serving(engine):
        await engine.events.submit(world.event("go"))
        assert engine.started == [] and engine.was_told_of_due_runs
    assert [row["state"] for row in await world.rows("SELECT state FROM live_run")] == ["ready"]


async def test_an_event_that_can_not_be_written_keeps_no_place(database: Database) -> None:
    world = await make_world(database)
    async with serving(Engine(world)) as engine:
        with pytest.raises(Exception, match=r"0x00"):
            await engine.events.submit(world.event("go\0"))
        assert engine.inflight.reserved == 0
        await engine.events.submit(world.event("go"))
        assert len(engine.started) == 1


async def test_runs_of_a_commit_that_was_not_heard_of_go_to_a_claim(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    world = await make_world(database)
    transact = database.transact_opened
    unheard: list[Any] = []

    async def lose_the_first_answer(*args: Any, **options: Any) -> Any:
        result = await transact(*args, **options)
        if not unheard:
            unheard.append(result)
            raise CommitUnknown("lost")
        return result

    monkeypatch.setattr(database, "transact_opened", lose_the_first_answer)
    async with serving(Engine(world)) as engine:
        answer = await engine.events.submit(world.event("go"))
        assert len(unheard[0].handovers) == 1 and engine.started == [] and engine.inflight.reserved == 0
        assert engine.was_told_of_due_runs
    [lease] = await world.claim()
    assert lease.run_id == answer.runs[0][0] and lease.generation == 2
    await world.assert_sound()
