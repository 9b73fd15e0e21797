"""What is between engine and app cuts connections in the midst of batches, or holds replies back until they are whole."""

from __future__ import annotations

import random
import time

import pytest

from tests.faults.mixed_load import make_mixed
from tests.system.checker import assert_sound
from tests.system.logged_client import Load
from tests.system.processes import wait_until
from tests.system.runs import body_starts, start_many, start_run
from tests.system.system import System

pytestmark = [pytest.mark.postgres, pytest.mark.slow]

RUNS = 16
# Beyond what a proxy may take until the first byte of a reply to several runs.
LATE_SECONDS = 6.5


@pytest.fixture
def system(proxied_system: System) -> System:
    return proxied_system


def test_connections_cut_at_random_bytes_in_both_directions_lose_and_repeat_nothing(system: System, seed: int) -> None:
    assert system.to_app and system.to_engine
    chance = random.Random(seed)
    proxies = [(system.to_app, 8_000), (system.to_engine, 20_000)]
    before = {proxy.port: proxy.cuts for proxy, _ in proxies}
    for proxy, bytes_max in proxies:
        proxy.reseed(chance.randrange(1_000_000), cut_bytes_max=bytes_max)
        proxy.fault = "cut"
    with Load([system.client()], make_mixed(seed), prefix=f"cut-{seed}", per_second=15):
        turn = 0

        def are_cut() -> bool:
            nonlocal turn
            turn += 1
            data = [{"n": f"{turn}-{n}", "body_seconds": round(chance.uniform(0, 0.3), 3)} for n in range(RUNS)]
            start_many(system, "three.wanted", data, f"cut-{seed}-{turn}")
            time.sleep(chance.uniform(0.2, 0.6))
            return turn >= 6 and all(proxy.cuts >= before[proxy.port] + 8 for proxy, _ in proxies)

        wait_until("connections were cut in both directions", are_cut)
        for proxy, _ in proxies:
            proxy.fault = "none"
    assert_sound(system)
    assert max(len(call.runs) for call in system.calls()) > 1, "no runs travelled together; the scenario shows nothing"


def test_an_app_behind_a_proxy_that_holds_replies_back_gets_single_calls(system: System) -> None:
    assert system.to_app is not None
    # What an engine knows of an app's pace ends with it.
    system.engine().kill9()
    system.start_engine()
    system.to_app.fault = "buffer"
    try:
        data = [{"n": f"held-{n}", "body_seconds": LATE_SECONDS if n == 0 else 0.2} for n in range(RUNS)]
        held = start_many(system, "chain.wanted", data, "held-back")
        wait_until("the late body runs", lambda: body_starts(system, held[0], "a"))
        [shared] = [call for call in system.calls() if any(run_id == held[0] for run_id, _ in call.runs)]
        assert len(shared.runs) > 1, "they travelled together"
        said = system.place / "engine0.log"
        wait_until("the engine has noticed", lambda: "app_gets_single_calls" in said.read_text())
        noticed_at = time.time()
        later = start_many(system, "three.wanted", [{"n": f"later-{n}", "body_seconds": 0.1} for n in range(RUNS)], "singly")
        evidence = assert_sound(system)
        since = [call for call in system.calls() if call.at > noticed_at]
        assert {run_id for call in since for run_id, _ in call.runs} >= set(later)
        assert all(len(call.runs) == 1 for call in since)
        # A reply that comes late is not one that is lost.
        outcomes = {lease["outcome"] for run_id in [*held, *later] for lease in evidence.leases[run_id].values()}
        assert outcomes == {"completed"}
    finally:
        system.to_app.fault = "none"
        system.engine().kill9()
        system.start_engine()
    assert start_run(system, "three.wanted", {"n": "after"}, "after-the-buffer")
    assert_sound(system)
