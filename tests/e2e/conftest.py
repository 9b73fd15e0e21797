"""A machine of somebody new: an empty home, and an environment with nothing of Durable's in it."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.processes import ROOT


@pytest.fixture
def new_home() -> Iterator[Path]:
    place = Path(tempfile.mkdtemp(prefix="durable-e2e-"))
    # Run as root, Postgres is another user, who must get through.
    place.chmod(0o711)
    yield place
    shutil.rmtree(place, ignore_errors=True)


@pytest.fixture
def new_environment(new_home: Path) -> dict[str, str]:
    return {
        "HOME": str(new_home),
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'sdk_python'}",
        "LANG": "C.UTF-8",
    }
