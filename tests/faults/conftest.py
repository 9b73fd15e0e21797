"""What the fault tests share: the seed, the systems for those whose scenario leaves them whole, and the logs in the report of a failure.

The seed is random, or FAULTS_SEED. It is printed, and pytest shows it with a failure.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

from tests.system.system import System, open_system


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    chosen = int(os.environ.get("FAULTS_SEED") or random.randrange(1_000_000))
    print(f"{request.node.name}: FAULTS_SEED={chosen}")
    return chosen


@pytest.fixture(scope="package")
def _plain_system() -> Iterator[System]:
    with open_system(lease_seconds=3, drain_seconds=5) as opened:
        yield opened


@pytest.fixture(scope="package")
def _proxied_system() -> Iterator[System]:
    with open_system(lease_seconds=3, drain_seconds=5, has_proxies=True, app_worker="trio") as opened:
        yield opened


@pytest.fixture(scope="package")
def _two_engines() -> Iterator[System]:
    with open_system(engines=2, lease_seconds=3, has_proxies=True) as opened:
        yield opened


@pytest.fixture
def system(_plain_system: System) -> System:
    """One engine and one app, healthy at the start of each test, whatever the one before did."""
    return healed(_plain_system)


@pytest.fixture
def proxied_system(_proxied_system: System) -> System:
    """The same with a proxy in each direction between the two, which pass on everything."""
    return healed(_proxied_system)


@pytest.fixture
def two_engines(_two_engines: System) -> System:
    """Two engines on one Postgres, and one app, which speaks to the first of them."""
    system = healed(_two_engines)
    system.balance_to(0)
    return system


def healed(system: System) -> System:
    for proxy in (system.to_app, system.to_engine):
        if proxy is not None:
            proxy.fault = "none"
    if system.to_app is not None:
        system.to_app.target = system.app_port
    for process in list(system.processes.by_name.values()):
        process.thaw()
    if not system.app.is_alive():
        system.start_app()
    for number in range(len(system.engine_ports)):
        if not system.engine(number).is_alive():
            system.start_engine(number)
    return system


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Show the logs of a shared system with the failure, and keep its files."""
    report = yield
    for used in getattr(item, "funcargs", {}).values():
        if report.failed and isinstance(used, System):
            used.has_failed = True
            report.sections.append((f"the system in {used.place}, whose files are kept", used.processes.logs()))
    return report
