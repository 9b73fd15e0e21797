"""The client of the fault tests: sends events through the SDK and logs each answer that it got, which is what the engine promised.

`Load` sends from a few threads until it is stopped. A send that gets no answer is sent again with its id until it gets one.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import durable
from durable.keys import Settings
from durable.signing import Key
from durable.wire import EventAnswer, Workspace

SEND_SECONDS_MAX = 90.0


class LoggedClient(durable.App):
    """An app that only sends. Its settings are given, so that several can live in one process."""

    def __init__(self, workspace: Workspace, url: str, read_key: Callable[[], str], log: Path) -> None:
        super().__init__(workspace.app)
        self._workspace, self._url, self._read_key, self._log = workspace, url, read_key, log
        self._lock = threading.Lock()

    def settings(self) -> Settings:
        return Settings(self._url, self._workspace, (Key.parse(self._read_key()),))

    def send_logged(self, name: str, data: Any, event_id: str, *, given_up: threading.Event | None = None) -> EventAnswer:
        """Send until it is acknowledged, and log the answer. `given_up` set, the failure of the try under way is the last."""
        [answer] = self.send_many_logged([(name, data, event_id)], given_up=given_up)
        return answer

    def send_many_logged(
        self, events: Sequence[tuple[str, Any, str]], *, given_up: threading.Event | None = None
    ) -> list[EventAnswer]:
        """The same for events (name, data, id) in one message."""
        give_up_at = time.monotonic() + SEND_SECONDS_MAX
        message = [{"name": name, "data": data, "id": event_id} for name, data, event_id in events]
        while True:
            try:
                answers = self.send_many_sync(message)
                break
            except durable.EngineUnreachable:
                if time.monotonic() > give_up_at or (given_up is not None and given_up.is_set()):
                    raise
        for (name, data, event_id), answer in zip(events, answers, strict=True):
            runs = sorted(started.run_id for started in answer.runs)
            self._write(
                {"id": event_id, "name": name, "data": data, "runs": runs, "is_duplicate": answer.duplicate, "at": time.time()}
            )
        return answers

    def _write(self, words: dict[str, Any]) -> None:
        with self._lock, open(self._log, "a") as log:
            log.write(json.dumps(words) + "\n")


def read_client_log(log: Path) -> list[dict[str, Any]]:
    """Every acknowledged send, in order."""
    return [json.loads(text) for text in log.read_text().splitlines()] if log.exists() else []


class Load:
    """Sends the events that `make_event(n)` gives (name, data), n = 0, 1, 2 …, as a context: it stops at the end of the block."""

    def __init__(
        self,
        clients: Sequence[LoggedClient],
        make_event: Callable[[int], tuple[str, Any]],
        *,
        prefix: str,
        per_second: float = 20,
        threads: int = 3,
    ) -> None:
        self._clients, self._make_event, self._prefix = clients, make_event, prefix
        self._pause_seconds = threads / per_second
        self._stop = threading.Event()
        self._given_up = threading.Event()
        self._lock = threading.Lock()
        self._next = 0
        self._threads = [threading.Thread(target=self._run, args=(place,), name=f"load {place}") for place in range(threads)]
        self.failures: list[BaseException] = []
        self.acknowledged = 0

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        if exc[0] is not None:
            self._given_up.set()
        for thread in self._threads:
            thread.join()
        if exc[0] is None and self.failures:
            raise AssertionError("An event was not taken.") from self.failures[0]

    def _run(self, place: int) -> None:
        while not self._stop.wait(self._pause_seconds):
            with self._lock:
                number, self._next = self._next, self._next + 1
            name, data = self._make_event(number)
            try:
                self._clients[(number + place) % len(self._clients)].send_logged(
                    name, data, f"{self._prefix}-{number}", given_up=self._given_up
                )
            except BaseException as error:
                self.failures.append(error)
                return
            with self._lock:
                self.acknowledged += 1
