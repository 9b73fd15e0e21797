"""Short questions of the scenarios: to the people's API over HTTP, to the witness and to the app's log.

What a person would see decides, so runs are read where people read them; the tables only where no page shows it.
"""

from __future__ import annotations

import http.client
import json
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.system.processes import wait_until
from tests.system.system import System
from tests.system.witness_log import Line

SCENARIO_APP = "tests.scenarios.scenario_app:asgi"
ENDED = ("completed", "failed", "cancelled")
RUN_SECONDS_MAX = 60.0


def send(system: System, name: str, data: Any, event_id: str | None = None) -> list[str]:
    """Send an event; the runs that it started."""
    return sorted(run.run_id for run in system.client().send_logged(name, data, event_id or uuid.uuid4().hex).runs)


def begin(system: System, name: str, data: Any) -> str:
    """Send an event that starts one run; its id."""
    [run_id] = send(system, name, data)
    return run_id


def get(system: System, path: str) -> Any:
    """What the people's API answers in the workspace."""
    token = system.token or (system.place / "home" / "dev.token").read_text().strip()
    connection = http.client.HTTPConnection("127.0.0.1", system.engine_ports[0], timeout=60)
    try:
        connection.request("GET", f"/v1/apps/shop/dev/{path}", headers={"authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        body = answer.read()
    finally:
        connection.close()
    assert answer.status == 200, (answer.status, body)
    return json.loads(body)


def shown(system: System, run_id: str) -> Any:
    """The run as people see it now."""
    return get(system, f"runs/{run_id}")


def ended(system: System, run_id: str, seconds: float = RUN_SECONDS_MAX) -> Any:
    """The run as people see it when it has ended."""

    def look() -> Any:
        run = get(system, f"runs/{run_id}?wait=10s")
        return run if run["status"] in ENDED else None

    try:
        return wait_until(f"the run {run_id} has ended", look, seconds)
    except AssertionError as error:
        raise AssertionError(f"{error} It is {shown(system, run_id)}") from None


def output(system: System, run_id: str) -> Any:
    """What the run returned; an AssertionError shows a run that did not."""
    run = ended(system, run_id)
    assert run["status"] == "completed", run
    return run["output"]


def stands(system: System, run_id: str, is_so: Callable[[Any], bool], what: str) -> Any:
    """The run as soon as it stands so."""

    def look() -> Any:
        run = shown(system, run_id)
        return run if is_so(run) else None

    try:
        return wait_until(what, look, RUN_SECONDS_MAX)
    except AssertionError as error:
        raise AssertionError(f"{error} It is {shown(system, run_id)}") from None


def waits_at(system: System, run_id: str, step_id: str) -> Any:
    """The run as soon as it waits at that step and nothing else goes on."""

    def is_so(run: Any) -> bool:
        return run["status"] == "waiting" and any(step["id"] == step_id and step["status"] == "waiting" for step in run["steps"])

    return stands(system, run_id, is_so, f"the run waits at {step_id}")


def step_of(run: Any, step_id: str) -> Any:
    [step] = [step for step in run["steps"] if step["id"] == step_id]
    return step


def starts(system: System, run_id: str, step_id: str | None = None) -> list[Line]:
    """When bodies of the run started, of one step or of all."""
    return [
        line for line in system.witness() if line.what == "start" and line.run_id == run_id and step_id in (None, line.step_id)
    ]


def spans(system: System, run_ids: Sequence[str], step_id: str) -> list[tuple[float, float, str]]:
    """Start and end of each body of that step in these runs, in the order of their starts."""
    begun: dict[tuple[str, int, int], float] = {}
    found = []
    for line in system.witness():
        if line.step_id != step_id or line.run_id not in run_ids:
            continue
        name = (line.run_id, line.attempt, line.generation)
        if line.what == "start":
            begun[name] = line.at
        else:
            found.append((begun.pop(name), line.at, line.run_id))
    assert not begun, f"These bodies have not ended: {begun}"
    return sorted(found)


def most_at_once(bodies: Sequence[tuple[float, float, str]]) -> int:
    """How many of them ran at once at most."""
    changes = sorted([(start, 1) for start, _, _ in bodies] + [(end, -1) for _, end, _ in bodies])
    held = most = 0
    for _, change in changes:
        held += change
        most = max(most, held)
    return most


def log_lines(system: System, words: str) -> int:
    """How many lines of the app's log end with these words."""
    text = (system.place / "app.log").read_text("utf-8", "replace")
    return sum(line.startswith("LINE ") and line.endswith(words) for line in text.splitlines())


class Gate:
    """What a gated body waits for."""

    def __init__(self, system: System) -> None:
        self.path = system.place / f"gate-{uuid.uuid4().hex}"

    def __str__(self) -> str:
        return str(self.path)

    def open(self) -> None:
        Path(self.path).touch()
