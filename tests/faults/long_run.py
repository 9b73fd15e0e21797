"""The long random form of the fault tests: everything is killed, frozen and cut off at random under a mixed load; then all promises are checked.

`python -m tests.faults.long_run --seconds 600 --seed 7`, or `make faults SECONDS=600 SEED=7`. The seed decides which faults come in
which order; each is printed as it comes.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import time
from collections.abc import Callable

from tests.faults.mixed_load import make_mixed
from tests.system import sql
from tests.system.checker import assert_sound
from tests.system.fault_proxy import FaultProxy
from tests.system.logged_client import Load
from tests.system.processes import Process, wait_until
from tests.system.system import System, open_system

LEASE_SECONDS = 3.0
HEAL_SECONDS_MAX = 120.0


def main() -> None:
    """Run it; the exit code is 0 when every promise held."""
    parser = argparse.ArgumentParser(description="Kill everything at random under load, then check what was promised.")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long faults come")
    parser.add_argument("--seed", type=int, default=None, help="the order of the faults; random if not given")
    asked = parser.parse_args()
    seed = random.randrange(1_000_000) if asked.seed is None else asked.seed
    print(f"seed {seed}, {asked.seconds:g} s", flush=True)
    with open_system(engines=2, lease_seconds=LEASE_SECONDS, has_proxies=True) as system:
        counts = torment(system, seed, asked.seconds)
        heal(system)
        evidence = assert_sound(system, seconds=HEAL_SECONDS_MAX)
    interrupted = sum(lease["outcome"] == "interrupted" for leases in evidence.leases.values() for lease in leases.values())
    bodies = sum(line.what == "start" for line in evidence.lines)
    print(
        f"sound: {len(evidence.acknowledged)} events acknowledged, {len(evidence.runs)} runs, {bodies} bodies, "
        f"{interrupted} interruptions, {evidence.frozen_starts} bodies of frozen processes that started late; faults: {counts}"
    )


def torment(system: System, seed: int, seconds: float) -> dict[str, int]:
    """Let faults come for `seconds`, under load; how often each came."""
    chance = random.Random(seed)
    counts: dict[str, int] = {}
    clients = [system.client(0), system.client(1)]
    started_at = time.monotonic()
    with Load(clients, make_mixed(seed), prefix=f"long-{seed}", per_second=15, threads=8):
        while time.monotonic() - started_at < seconds:
            time.sleep(chance.uniform(0.2, 2.0))
            fault = chance.choice(FAULTS)
            print(f"{time.monotonic() - started_at:7.2f} s  {fault.__name__}", flush=True)
            counts[fault.__name__] = counts.get(fault.__name__, 0) + 1
            fault(system, chance)
            revive(system)
        heal(system)
    return counts


def kill_engine(system: System, chance: random.Random) -> None:
    system.engine(chance.randrange(2)).kill9()


def kill_both_engines(system: System, chance: random.Random) -> None:
    system.engine(0).kill9()
    system.engine(1).kill9()
    time.sleep(chance.uniform(0, 2 * LEASE_SECONDS))


def drain_engine(system: System, chance: random.Random) -> None:
    engine = system.engine(chance.randrange(2))
    engine.terminate()
    engine.wait(60)


def freeze_engine(system: System, chance: random.Random) -> None:
    _freeze(system.engine(chance.randrange(2)), chance.uniform(0.5, 3 * LEASE_SECONDS))


def kill_app(system: System, chance: random.Random) -> None:
    system.app.kill9()


def freeze_app(system: System, chance: random.Random) -> None:
    _freeze(system.app, chance.uniform(0.5, 2 * LEASE_SECONDS))


def kill_postgres(system: System, chance: random.Random) -> None:
    _signal_postgres(system, signal.SIGKILL)


def restart_postgres(system: System, chance: random.Random) -> None:
    _signal_postgres(system, signal.SIGINT)


def break_network(system: System, chance: random.Random) -> None:
    proxy = chance.choice(_proxies(system))
    proxy.fault = chance.choice(["reset", "refuse", "truncate", "black_hole", "delay"])
    time.sleep(chance.uniform(0.2, 2 * LEASE_SECONDS))
    proxy.fault = "none"
    proxy.drop_connections()


def turn_to_other_engine(system: System, chance: random.Random) -> None:
    """What the app says goes to the other engine from now on, as behind a load balancer."""
    system.balance_to(chance.randrange(2))


FAULTS: tuple[Callable[[System, random.Random], None], ...] = (
    kill_engine,
    kill_engine,
    kill_both_engines,
    drain_engine,
    freeze_engine,
    kill_app,
    freeze_app,
    kill_postgres,
    restart_postgres,
    break_network,
    break_network,
    turn_to_other_engine,
)


def revive(system: System) -> None:
    """Start again what has died. An engine does not start without its database, so it may take some tries."""
    if not system.app.is_alive():
        system.start_app()
    for number in range(2):
        if not system.engine(number).is_alive():
            system.start_engine(number, is_awaited=False)
    assert system.to_engine is not None
    target = system.to_engine.target
    if not system.engine(list(system.engine_ports).index(target)).is_alive():
        system.to_engine.target = next(port for port in system.engine_ports if port != target)


def heal(system: System) -> None:
    """Take all faults away and wait until everything is up."""
    for proxy in _proxies(system):
        proxy.fault = "none"

    def is_up() -> bool:
        revive(system)
        try:
            return system.count("SELECT 1") == 1 and all(system.is_ready(number) for number in range(2))
        except (sql.DatabaseAway, AssertionError):
            return False

    wait_until("everything is up again", is_up, HEAL_SECONDS_MAX)


def _freeze(process: Process, seconds: float) -> None:
    process.freeze()
    time.sleep(seconds)
    process.thaw()


def _signal_postgres(system: System, sent: signal.Signals) -> None:
    try:
        os.kill(system.postmaster_pid(), sent)
    except (OSError, ValueError, IndexError):
        return  # It starts again at this moment; that is fault enough.


def _proxies(system: System) -> list[FaultProxy]:
    return [proxy for proxy in (system.to_app, system.to_engine) if proxy is not None]


if __name__ == "__main__":
    main()
    sys.exit(0)
