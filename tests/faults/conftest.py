"""What the fault tests share: the seed, one system for those whose scenario leaves it whole, and the logs in the report of a failure.

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
def _one_system() -> Iterator[System]:
    with open_system(lease_seconds=3, drain_seconds=5, has_proxies=True) as opened:
        yield opened


@pytest.fixture
def system(_one_system: System) -> System:
    """One engine and one app with a proxy in each direction, healthy at the start of each test, whatever the one before did."""
    assert _one_system.to_app and _one_system.to_engine
    _one_system.to_app.fault = _one_system.to_engine.fault = "none"
    _one_system.to_app.target = _one_system.app_port
    for process in list(_one_system.processes.by_name.values()):
        process.thaw()
    if not _one_system.app.is_alive():
        _one_system.start_app()
    if not _one_system.engine().is_alive():
        _one_system.start_engine()
    return _one_system


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Show the logs of a shared system with the failure, and keep its files."""
    report = yield
    used = getattr(item, "funcargs", {}).get("system")
    if report.failed and isinstance(used, System):
        used.has_failed = True
        report.sections.append((f"the system in {used.place}, whose files are kept", used.processes.logs()))
    return report
