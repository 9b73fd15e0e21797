"""A place that every user may pass through, and a starter of engine processes that leaves none behind."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.store.embedded_postgres.engine_processes import Starter, copy_cluster, is_alive, owner_and_mode, until, words_of


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that every user may pass through (pytest's own are root's alone), compared in its modes afterwards."""
    made = Path(tempfile.mkdtemp(prefix="pg-test-", dir="/tmp"))
    made.chmod(0o755)
    above = {parent: owner_and_mode(parent) for parent in made.parents}
    yield made
    assert {parent: owner_and_mode(parent) for parent in made.parents} == above
    shutil.rmtree(made)


@pytest.fixture(scope="session")
def pristine() -> Iterator[Path]:
    """A cluster as the first start makes it, never started again itself."""
    made = Path(tempfile.mkdtemp(prefix="pg-test-pristine-", dir="/tmp"))
    made.chmod(0o755)
    (made / "home").mkdir()
    maker = Starter(made, made / "data")
    assert maker.open("--data-dir", str(made / "data")).close_input() == 0
    yield made / "data"
    shutil.rmtree(made)


@pytest.fixture
def data_dir(place: Path, pristine: Path) -> Path:
    return Path(copy_cluster(pristine, place / "data"))


@pytest.fixture
def starter(place: Path, pristine: Path) -> Iterator[Starter]:
    (place / "home").mkdir()
    started = Starter(place, pristine)
    yield started
    pids = {line["pid"] for engine in started.engines for line in engine.lines if "pid" in line}
    for engine in started.engines:
        engine.process.kill()
        engine.process.wait()
        for pipe in (engine.process.stdin, engine.process.stdout):
            assert pipe is not None
            pipe.close()
    for pid in pids:
        if is_alive(pid) and "-D" in words_of(pid):
            os.kill(pid, signal.SIGQUIT)
    until(lambda: not any(is_alive(pid) for pid in pids))
