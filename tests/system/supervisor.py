"""Starts the app again whenever it has died, as a supervisor in production does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.system.system import System

LOOK_SECONDS = 0.02


@contextmanager
def app_kept_up(system: System) -> Iterator[list[int]]:
    """While the block lasts; gives the list of exit codes, which grows."""
    is_over = threading.Event()
    deaths: list[int] = []

    def restart_app() -> None:
        while not is_over.wait(LOOK_SECONDS):
            if not system.app.is_alive():
                deaths.append(system.app.wait(0))
                system.start_app()

    supervisor = threading.Thread(target=restart_app, name="supervisor")
    supervisor.start()
    try:
        yield deaths
    finally:
        is_over.set()
        supervisor.join()
