"""An app that dies in a body, freezes, poisons itself, or can not be reached: one run pays what it must, the others go on."""

from __future__ import annotations

import time

import pytest

from durable.wire import Workspace
from tests.faults.mixed_load import make_mixed
from tests.system.checker import assert_sound
from tests.system.fault_proxy import Fault, FaultProxy, open_proxy
from tests.system.logged_client import Load, LoggedClient
from tests.system.processes import free_ports, wait_until
from tests.system.runs import body_starts, ended_as, has_returned, invocations_of, start_run
from tests.system.supervisor import app_kept_up
from tests.system.system import System, http_status

# More than an engine has open at once; what takes longer than this waited for their end.
SWALLOWED_RUNS = 300
BESIDE_SECONDS_MAX = 10.0

pytestmark = [pytest.mark.postgres, pytest.mark.slow]


def test_an_app_killed_in_a_body_costs_one_attempt_and_no_committed_step(system: System) -> None:
    run_id = start_run(system, "three.wanted", {"n": 1, "body_seconds": 0.4}, "killed-app")
    wait_until("the body of b runs", lambda: body_starts(system, run_id, "b"))
    system.app.kill9()
    system.start_app()
    assert_sound(system)
    assert [len(body_starts(system, run_id, step)) for step in "abc"] == [1, 2, 1]
    invocations = invocations_of(system, run_id)
    assert [(row["outcome"], row["attempt"]) for row in invocations if row["outcome"] != "undelivered"] == [
        ("call_died", 1),
        ("completed", 1),  # b, committed, has set the count back
    ]
    [died] = system.query("SELECT max(attempt) AS attempt FROM step WHERE run_id = $1::text::uuid", run_id)
    assert died["attempt"] == 1, "the step itself has not failed"


def test_a_run_that_kills_its_app_each_time_fails_with_the_cause_and_others_go_on(system: System) -> None:
    with app_kept_up(system) as deaths:
        with Load(
            [system.client()], lambda n: ("three.wanted", {"n": n, "body_seconds": 0.02}), prefix="beside-poison", per_second=10
        ):
            run_id = start_run(system, "poison.wanted", {}, "poison")
            wait_until("the poison has failed", lambda: ended_as(system, run_id) is not None, 45)
        evidence = assert_sound(system)
    [end] = system.query("SELECT status, error FROM run_end WHERE run_id = $1::text::uuid", run_id)
    assert end["status"] == "failed" and "connection" in end["error"], end
    # Two retries: three tries, and the app died in each; before them once more, if others travelled in its first call.
    tries = [row for row in invocations_of(system, run_id) if row["outcome"] == "call_died"]
    interruptions = [row for row in invocations_of(system, run_id) if row["outcome"] == "interrupted"]
    assert len(tries) == 3 and len(interruptions) <= 1
    assert deaths == [7] * (len(tries) + len(interruptions))
    assert len(body_starts(system, run_id, "drink")) == len(deaths)
    beside = [run for run in evidence.runs.values() if run["external_id"].startswith("beside-poison")]
    assert beside and all(run["status"] == "completed" for run in beside)


def test_an_app_that_swallows_all_calls_does_not_hold_up_another(system: System) -> None:
    """More calls than the engine has open at once go to an app that answers nothing; the other app's runs must not wait for them."""
    [port] = free_ports(1)
    other = system.start_app("tests.system.raw_app:asgi", name="mail", port=port, RAW_APP="mail")
    with open_proxy(port) as proxy:
        system.more_app_urls = (f"http://127.0.0.1:{proxy.port}/",)
        system.engine().kill9()
        system.start_engine()
        try:
            wait_until("the engine knows both apps", lambda: system.count("SELECT count(*) FROM app") == 2)
            mail = LoggedClient(Workspace("mail", "dev"), system.engine_url(), system.read_signing_key, system.client_log)
            proxy.fault = "black_hole"
            swallowed = {"reply": "html", "times": 0}
            mail.send_many_sync(
                [{"name": "raw.wanted", "data": swallowed, "id": f"swallowed-{n}"} for n in range(SWALLOWED_RUNS)]
            )
            wait_until("no more calls are begun", lambda: _is_steady(proxy))
            run_ids = [start_run(system, "three.wanted", {"n": n}, f"beside-{n}") for n in range(5)]
            for run_id in run_ids:
                wait_until("a run of the other app has ended", lambda run_id=run_id: ended_as(system, run_id), BESIDE_SECONDS_MAX)  # type: ignore[misc]
        finally:
            proxy.fault = "none"
            proxy.drop_connections()
            wait_until("no call is swallowed any more", system.all_ended, 60)
            system.more_app_urls = ()
            other.kill9()
    assert_sound(system)


def test_a_frozen_app_that_wakes_after_its_run_was_given_away_is_told_that_it_is_stale(proxied_system: System) -> None:
    system = proxied_system
    assert system.to_app is not None
    run_id = start_run(system, "three.wanted", {"n": 2, "body_seconds": 0.5}, "frozen-app")
    [begun] = wait_until("the body of b runs", lambda: body_starts(system, run_id, "b"))
    frozen = system.app
    frozen.freeze()
    # Another process of the app takes over; the engine's connection to the frozen one breaks.
    [port] = free_ports(1)
    other = system.start_app(name="app2", port=port)
    try:
        wait_until("the other app serves", lambda: http_status(port, "/") > 0)
        system.to_app.target = port
        system.to_app.drop_connections()
        wait_until("the run has ended elsewhere", lambda: ended_as(system, run_id) == "completed")
        frozen.thaw()
        wait_until("the frozen body has come to its end", lambda: has_returned(system, run_id, "b", begun.pid))
        # What the woken process has to say goes before what it says of a later run.
        system.to_app.target = system.app_port
        system.to_app.drop_connections()
        later = start_run(system, "three.wanted", {"n": 3}, "after-the-freeze")
        wait_until("a later run has ended in the woken app", lambda: ended_as(system, later) == "completed")
        assert_sound(system)
        assert {line.pid for line in body_starts(system, later, "a")} == {frozen.pid}
    finally:
        frozen.thaw()
        other.kill9()
    assert [(line.step_id, line.generation) for line in body_starts(system, run_id) if line.pid == frozen.pid] == [
        ("a", 1),
        ("b", 1),
    ]
    [written] = system.query("SELECT generation FROM step WHERE run_id = $1::text::uuid AND step_id = 'b'", run_id)
    assert written["generation"] > 1, "the frozen generation has written nothing"


FAULTS: tuple[Fault, ...] = ("reset", "truncate", "black_hole", "delay", "refuse")


def test_broken_networks_between_engine_and_app_lose_and_repeat_nothing(proxied_system: System, seed: int) -> None:
    system = proxied_system
    assert system.to_app and system.to_engine
    with Load([system.client()], make_mixed(seed), prefix="network", per_second=15) as load:
        for proxy in (system.to_app, system.to_engine):
            for fault in FAULTS:
                wanted = load.acknowledged + 8
                proxy.fault = fault
                wait_until("some events came in during the fault", lambda wanted=wanted: load.acknowledged >= wanted)  # type: ignore[misc]
                proxy.fault = "none"
                if fault == "black_hole":
                    # As a firewall does that forgot its connections.
                    proxy.drop_connections()
    assert_sound(system)


def _is_steady(proxy: FaultProxy) -> bool:
    """Whether many calls are swallowed and for a second no other came."""
    before = proxy.connections
    time.sleep(1)
    return proxy.connections == before >= 64
