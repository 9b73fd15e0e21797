"""What the scenarios share: one system for all modules that leave it whole, the audit at the end of each, and logs with a failure."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.scenarios.asking import SCENARIO_APP
from tests.system.system import System, open_system


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/scenarios/" in str(item.path):
            item.add_marker(pytest.mark.postgres)


@pytest.fixture(scope="package")
def _one_system() -> Iterator[System]:
    with open_system(app=SCENARIO_APP, lease_seconds=4) as opened:
        yield opened


@pytest.fixture(scope="module")
def system(_one_system: System) -> Iterator[System]:
    """One engine, and the scenario app on asyncio. What a module leaves behind must be sound."""
    yield _one_system
    audit = _one_system.durable("audit")
    assert audit["count"] == 0, audit["findings"]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Show the logs of a shared system with the failure, and keep its files."""
    report = yield
    used = getattr(item, "funcargs", {}).get("system")
    if report.failed and isinstance(used, System):
        used.has_failed = True
        report.sections.append((f"the system in {used.place}, whose files are kept", used.processes.logs()))
    return report
