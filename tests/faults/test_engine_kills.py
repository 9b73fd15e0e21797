"""An engine that is killed: at every named crash point, and again and again at random moments, under a load of every kind of run."""

from __future__ import annotations

import random
import time

import pytest

from engine.store.crash_points import CRASH_POINTS
from tests.faults.mixed_load import make_mixed
from tests.system.checker import assert_sound
from tests.system.logged_client import Load
from tests.system.processes import wait_until
from tests.system.system import System

pytestmark = [pytest.mark.postgres, pytest.mark.slow]

KILLED = 137
# A lease of 4 s, the grace of 2 s, and a look a second must pass before the reaper has work.
REACH_SECONDS_MAX = 25.0
# At the end: an engine that dies with leases of which no app has heard leaves the reaper work.
IN_ORDER = ["claimed_before_call", "reclaim_before_commit", "drain_started"]


def test_an_engine_that_dies_at_any_named_point_loses_and_repeats_nothing(system: System, seed: int) -> None:
    chance = random.Random(seed)
    points = [name for name in CRASH_POINTS if name not in IN_ORDER]
    chance.shuffle(points)
    points += IN_ORDER
    system.engine().kill9()
    # With bodies so long that the app renews leases.
    mixed = make_mixed(seed, body_seconds_max=0.3)
    with Load([system.client()], mixed, prefix=f"crash-{seed}", per_second=24, threads=6):
        for name in points:
            _crash_at(system, name, chance.randint(1, 3) if name not in IN_ORDER else 1)
        system.start_engine()
    assert_sound(system)


def _crash_at(system: System, name: str, passage: int) -> None:
    """Run an engine until it dies at the point; AssertionError when it never comes there."""
    engine = system.start_engine(crash_at=f"{name}:{passage}", is_awaited=name == "drain_started")
    if name == "drain_started":
        engine.terminate()
    try:
        assert engine.wait(REACH_SECONDS_MAX) == KILLED
    except AssertionError as error:
        raise AssertionError(f"The crash point {name}:{passage} was not reached. {error}") from None


def test_an_engine_that_is_killed_again_and_again_loses_and_repeats_nothing(proxied_system: System, seed: int) -> None:
    system = proxied_system
    chance = random.Random(seed)
    mixed = make_mixed(seed, body_seconds_max=0.3)
    with Load([system.client()], mixed, prefix=f"kill-{seed}", per_second=24, threads=6) as load:
        for _ in range(3):
            time.sleep(chance.uniform(0.05, 1))
            if chance.random() < 0.6:
                # Not while it still starts, which is a kill of another kind.
                wait_until("it has started", system.is_ready)
            system.engine().kill9()
            system.start_engine(is_awaited=False)
        wait_until("runs are under way", lambda: system.is_ready() and _leased(system) >= 3)
        system.engine().kill9()
        held = _leased(system)
        system.start_engine()
    assert load.acknowledged and held, "the last kill fell on nothing"
    assert_sound(system)
    wait_until("the last engine holds no more files than at rest", lambda: system.engine().open_files() < 60)


def _leased(system: System) -> int:
    return system.count("SELECT count(*) FROM live_run WHERE state = 'leased'")
