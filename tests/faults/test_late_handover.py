"""An engine that froze between the claim and the call: it hands over what is left of the lease, and nothing when nothing is left.

Found with real processes (`test_two_engines.py`), where the freeze falls there by chance; here the clock is told.
"""

from __future__ import annotations

import re

import pytest
import trio

from engine.nursery.context import EngineContext
from engine.store.database import Database
from engine.store.read_invocations import Handover
from tests.engine.nursery.stand import an_app, an_engine
from tests.engine.nursery.test_review_findings import handed_over
from tests.engine.store.world import LEASE_SECONDS, make_world

pytestmark = pytest.mark.postgres


async def hand_over(engine: EngineContext, handover: Handover, claimed_at: float) -> None:
    """Start it as if it had been claimed then, and wait for its end."""
    assert engine.intake.reserve(1) == 1
    engine.intake.start([handover], claimed_at)
    await engine.inflight.wait_empty()


async def test_a_lease_that_ended_while_the_engine_froze_is_given_back_without_a_call(database: Database) -> None:
    world = await make_world(database)
    handover = await handed_over(world)
    called = trio.Event()

    async def answer(stream: trio.SocketStream) -> None:
        called.set()

    async with an_engine(world) as engine, an_app(world, answer):
        await hand_over(engine, handover, trio.current_time() - LEASE_SECONDS - 1)
    assert not called.is_set()
    assert await world.state(handover.lease.run_id) == "ready"


async def test_an_engine_that_is_late_hands_over_only_what_is_left_of_the_lease(database: Database) -> None:
    world = await make_world(database)
    requests: list[bytes] = []

    async def answer(stream: trio.SocketStream) -> None:
        while (chunk := await stream.receive_some()) and b"lease_seconds" not in b"".join(requests):
            requests.append(chunk)
            if b"lease_seconds" in b"".join(requests):
                return

    async with an_engine(world) as engine, an_app(world, answer):
        handover = await handed_over(world)
        await hand_over(engine, handover, trio.current_time() - 20)
    said = re.search(rb'"lease_seconds":([0-9.]+)', b"".join(requests))
    assert said is not None and 0 < float(said[1]) <= LEASE_SECONDS - 20
