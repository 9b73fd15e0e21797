"""Splits the time of a run among its steps: what the app worked, what was waited on purpose, and what Durable took. Pure.

A step's time runs from the commit before it (or the run's creation) to its own commit, so the parts of all steps and of the tail
add up to the life of the run. Clocks of the app are only used for differences among themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise

import msgspec


@dataclass(frozen=True, slots=True)
class StepSpan:
    """A committed step: `tries` are the begin and length of each try of its body, by the app's clock."""

    kind: str
    committed_at: datetime
    planned_at: datetime | None = None
    tries: tuple[tuple[datetime, float], ...] = ()


class StepTimes(msgspec.Struct, frozen=True):
    """Seconds since the commit before: they begin at `from_at`, and app + waited + durable is all of them."""

    from_at: datetime
    app_seconds: float
    waited_seconds: float
    durable_seconds: float


def split_times(created_at: datetime, spans: Sequence[StepSpan], until: datetime) -> tuple[list[StepTimes], StepTimes]:
    """The times of each step, and of what came after the last: until the end of the run, or until now."""
    times: list[StepTimes] = []
    from_at = created_at
    for span in spans:
        # Commits of one transaction have one order and nearly one time; never count backwards.
        to_at = max(span.committed_at, from_at)
        times.append(_split(span, from_at, to_at))
        from_at = to_at
    return times, StepTimes(from_at, 0.0, 0.0, max((until - from_at).total_seconds(), 0.0))


def _split(span: StepSpan, from_at: datetime, to_at: datetime) -> StepTimes:
    total = (to_at - from_at).total_seconds()
    # The body of a step that ran beside others began before the last commit: only what lies between the commits is counted.
    app = min(sum(seconds for _, seconds in span.tries), total)
    if span.kind in ("sleep", "wait_for_event"):
        waited = (to_at - max(span.planned_at or to_at, from_at)).total_seconds()
    else:
        waited = _between_tries(span.tries)
    waited = min(max(waited, 0.0), total - app)
    return StepTimes(from_at, app, waited, total - app - waited)


def _between_tries(tries: Sequence[tuple[datetime, float]]) -> float:
    return sum(max((following - began).total_seconds() - seconds, 0.0) for (began, seconds), (following, _) in pairwise(tries))
