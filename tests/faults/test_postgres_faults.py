"""A Postgres that is killed, restarted and frozen under load: the engine waits, goes on, and nothing is lost or done twice."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest

from tests.faults.mixed_load import make_mixed
from tests.system import sql
from tests.system.checker import assert_sound
from tests.system.logged_client import Load
from tests.system.processes import wait_until
from tests.system.system import System

pytestmark = [pytest.mark.postgres, pytest.mark.slow]


def test_a_postgres_that_is_killed_and_restarted_under_load_loses_nothing(system: System, seed: int) -> None:
    engine = system.engine()
    signals = [signal.SIGKILL, signal.SIGINT, signal.SIGKILL]
    random.Random(seed).shuffle(signals)
    with Load([system.client()], make_mixed(seed), prefix=f"postgres-{seed}", per_second=20) as load:
        for sent in signals:
            wanted = load.acknowledged + 12
            wait_until("events come in", lambda wanted=wanted: load.acknowledged >= wanted)  # type: ignore[misc]
            before = system.postmaster_pid()
            os.kill(before, sent)
            wait_until("another postmaster serves", lambda before=before: _serves(system, before))  # type: ignore[misc]
    assert_sound(system)
    assert engine.is_alive() and system.engine() is engine, "the engine outlives its database"


def test_a_postgres_that_freezes_longer_than_a_lease_loses_and_repeats_nothing(system: System, seed: int) -> None:
    with Load([system.client()], make_mixed(seed), prefix=f"frozen-postgres-{seed}", per_second=20) as load:
        wait_until("events come in", lambda: load.acknowledged >= 12)
        frozen = _processes_of(system.postmaster_pid())
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(AssertionError):
                # A lease is 3 s long and is left alone for 2 s more.
                wait_until("an event comes in", lambda at=load.acknowledged: load.acknowledged > at + 3, 6)  # type: ignore[misc]
        finally:
            for pid in frozen:
                os.kill(pid, signal.SIGCONT)
        wanted = load.acknowledged + 8
        wait_until("events come in again", lambda: load.acknowledged >= wanted)
    assert_sound(system)


def _serves(system: System, before: int) -> bool:
    try:
        return system.postmaster_pid() != before and system.count("SELECT 1") == 1
    except (sql.DatabaseAway, OSError, IndexError, ValueError):
        return False


def _processes_of(postmaster: int) -> list[int]:
    """The postmaster and its children: each connection is a process."""
    children = [
        int(pid) for task in Path(f"/proc/{postmaster}/task").iterdir() for pid in (task / "children").read_text().split()
    ]
    return [postmaster, *children]
