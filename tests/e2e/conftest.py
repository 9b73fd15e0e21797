"""A machine of somebody new: an empty home, and an environment with nothing of Durable's in it."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.store.postgres_home import MACHINE_DIR, _moved_data_dir
from tests.system.processes import ROOT


@pytest.fixture
def new_home() -> Iterator[Path]:
    place = Path(tempfile.mkdtemp(prefix="durable-e2e-"))
    # Run as root, Postgres is another user, who must get through.
    place.chmod(0o711)
    yield place
    shutil.rmtree(place, ignore_errors=True)
    # Run as root, the engine moves the data of a home that Postgres can not enter.
    for home in (place / ".durable", place / "demo" / "durable"):
        moved = _moved_data_dir(home).parent
        assert moved.parent == MACHINE_DIR and moved.name.startswith("home-")
        shutil.rmtree(moved, ignore_errors=True)


@pytest.fixture
def new_environment(new_home: Path) -> dict[str, str]:
    return {
        "HOME": str(new_home),
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'sdk_python'}",
        "LANG": "C.UTF-8",
    }
