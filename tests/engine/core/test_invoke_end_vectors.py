"""The engine's decisions against the vectors of SPEC 4.3, which ports emulate too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest

from engine.core.decide import decide
from engine.core.outcome import Outcome, Reported, Undelivered
from engine.core.run import LiveRun, PendingRetry, Recorded
from engine.core.transition import Delayed, Ended, Ready, Transition, Waiting
from protocol.manifest import FunctionConfig, Trigger
from protocol.ops import Backoff, Op, StepError, UnknownFunction

CASES = json.loads((Path(__file__).parents[3] / "protocol" / "vectors" / "invoke_end.json").read_text())["cases"]
RUN_ID = UUID("01990a3c-7d1e-7c3a-9b52-6f1f0e7f9a10")


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_the_end_of_an_invocation(case: dict[str, Any]) -> None:
    before, expected = case["before"], case["expect"]
    config = FunctionConfig("f", [Trigger("e")], retries=before["retries"], backoff=msgspec.convert(before["backoff"], Backoff))
    run = LiveRun(RUN_ID, 1, 1, "leased", 1, before["position"], attempt=before["attempt"])
    recorded = Recorded(
        waits={wait["id"]: wait["kind"] for wait in before["open_waits"]},
        retries={retry["id"]: PendingRetry(retry["attempt"], retry["in_seconds"]) for retry in before["waiting_retries"]},
    )
    ops = msgspec.json.decode(msgspec.json.encode(case["ops"]), type=tuple[Op, ...])
    for op in ops:
        if isinstance(op, StepError) and op.attempt > 1:
            # The engine knows by itself which try is under way.
            recorded.retries.setdefault(op.id, PendingRetry(op.attempt, 0))
    transition = decide(run, config, recorded, _outcome(ops, case["known"]), jitter=0.5)
    assert isinstance(transition, Transition), transition
    assert _state(transition) == expected["state"]
    if "due_in_seconds" in expected:
        assert _due_in_seconds(transition) == expected["due_in_seconds"]
    if "attempt" in expected:
        assert transition.counters.attempt == expected["attempt"]
    if expected["state"] not in ("completed", "failed"):
        assert [memo.step_id for memo in transition.memo if not memo.is_abandoned] == expected["memo"]
        open_waits = [wait for wait in recorded.waits if wait not in transition.dropped_waits]
        assert [*open_waits, *(wait.step_id for wait in transition.waits)] == expected["open_waits"]


def _outcome(ops: tuple[Op, ...], known: int) -> Outcome:
    # As the invocation reports it: a function that is not there was never executed.
    if any(isinstance(op, UnknownFunction) for op in ops):
        return Undelivered("unknown_function", "The app has no such function.", others_succeed=True)
    return Reported(ops, known, ends=True)


def _state(transition: Transition) -> str:
    match transition.next:
        case Ended(status):
            return status
        case Waiting():
            return "waiting"
        case Ready() | Delayed():
            return "ready"
    raise AssertionError(transition.next)


def _due_in_seconds(transition: Transition) -> float:
    return transition.next.seconds if isinstance(transition.next, Delayed) else 0
