"""Two engines on one Postgres: one freezes and wakes as a zombie, both are killed in turn, both get the same event at once."""

from __future__ import annotations

import random
import threading

import pytest

from durable.wire import EventAnswer
from tests.system.checker import assert_sound
from tests.system.logged_client import Load
from tests.system.processes import wait_until
from tests.system.system import System

pytestmark = [pytest.mark.postgres, pytest.mark.slow]

POSTS = 100


@pytest.fixture
def system(two_engines: System) -> System:
    """Two engines that run; the app says what it has to say through a proxy, as it would through a load balancer."""
    return two_engines


def test_a_hundred_posts_of_one_event_id_to_two_engines_make_one_run_set(system: System) -> None:
    clients = [system.client(0), system.client(1)]
    barrier = threading.Barrier(POSTS)
    answers: list[EventAnswer] = []

    def post(number: int) -> None:
        barrier.wait()
        answers.append(clients[number % 2].send_logged("three.wanted", {"n": "one"}, "same-id"))

    threads = [threading.Thread(target=post, args=(number,)) for number in range(POSTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == POSTS
    assert sum(not answer.duplicate for answer in answers) == 1, "one post is the first"
    assert len({tuple(started.run_id for started in answer.runs) for answer in answers}) == 1
    other = clients[1].send_logged("three.wanted", {"n": "another"}, "same-id")
    assert other.duplicate and other.conflict and other.runs == answers[0].runs
    assert_sound(system)


def test_an_engine_that_froze_beyond_its_leases_writes_nothing_when_it_wakes(system: System, seed: int) -> None:
    zombie = system.engine(0)
    with Load([system.client(0), system.client(1)], _make_three(seed), prefix="zombie", per_second=20):
        wait_until("the engine has invocations open", lambda: _held_by(system, 0) >= 2)
        zombie.freeze()
        held = system.query(
            "SELECT run_id::text, generation FROM live_run WHERE state = 'leased' AND engine_id = $1::text::uuid", _id(system, 0)
        )
        system.balance_to(1)
        wait_until("the other engine has taken its runs back and ended them", lambda: _are_ended(system, held))
        zombie.thaw()
        wait_until("the woken engine works", lambda: system.is_ready(0))
    evidence = assert_sound(system, number=1)
    lost = [run for run in held if evidence.leases[run["run_id"]][run["generation"]]["outcome"] == "interrupted"]
    assert lost, "No lease of the frozen engine ended while it was frozen; the scenario shows nothing."
    log = (system.place / "engine0.log").read_text()
    assert "report_not_applied" in log or "lease_lost" in log, "the woken engine has noticed"


def test_a_limit_holds_while_engines_are_killed(system: System, seed: int) -> None:
    chance = random.Random(seed)

    def make_limited(number: int) -> tuple[str, object]:
        return "limited.wanted", {"n": number, "tenant": "xyz"[number % 3], "body_seconds": 0.1}

    with Load([system.client(0), system.client(1)], make_limited, prefix="limited", per_second=18, threads=6) as load:
        for victim in (0, 1, 0):
            wanted = load.acknowledged + chance.randint(6, 12)
            wait_until("events come in", lambda wanted=wanted: load.acknowledged >= wanted)  # type: ignore[misc]
            system.balance_to(1 - victim)
            system.engine(victim).kill9()
            system.start_engine(victim)
    evidence = assert_sound(system)
    bodies = [line for line in evidence.lines if line.function == "limited" and line.what == "start"]
    assert len(bodies) > 40, "too few bodies to show that the limit holds"


def _make_three(seed: int):  # type: ignore[no-untyped-def]
    chance = random.Random(seed)
    return lambda number: ("three.wanted", {"n": number, "body_seconds": round(chance.uniform(0.1, 0.5), 2)})


def _id(system: System, number: int) -> str:
    name = f"%:{system.engine(number).pid}"
    [row] = system.query("SELECT engine_id::text FROM engine WHERE name LIKE $1", name)
    return str(row["engine_id"])


def _held_by(system: System, number: int) -> int:
    return system.count(
        "SELECT count(*) FROM live_run WHERE state = 'leased' AND engine_id = $1::text::uuid", _id(system, number)
    )


def _are_ended(system: System, held: list[dict[str, object]]) -> bool:
    ids = [str(run["run_id"]) for run in held]
    return system.count("SELECT count(*) FROM run_end WHERE run_id = ANY($1::text[]::uuid[])", ids) == len(ids)
