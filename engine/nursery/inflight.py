"""The invocations that this engine executes now: who they are, until when, and the scope through which each is ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal
from uuid import UUID

import trio

from engine.store.read_invocations import Handover

EndCause = Literal["lease_lost", "drain", "timed_out"]


@dataclass(eq=False)
class Inflight:
    """One invocation under way. Its scope's deadline is the latest time for the next sign of life of its step.

    `lease_ends_at` is on this engine's own clock, and never later than the lease in the database.
    """

    handover: Handover
    step_timeout_seconds: float
    lease_ends_at: float = float("inf")
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    end_cause: EndCause | None = None
    has_started: bool = False
    has_ended: bool = False

    @property
    def run_id(self) -> UUID:
        return self.handover.lease.run_id

    @property
    def workspace_id(self) -> int:
        return self.handover.lease.workspace_id

    def news(self) -> None:
        """The app showed that the run moves: the time for its next step begins again."""
        self.scope.deadline = trio.current_time() + self.step_timeout_seconds

    def end(self, cause: EndCause) -> None:
        """End the call; the app's bodies go on and are told when they report."""
        if self.end_cause is None:
            self.end_cause = cause
        self.scope.cancel()


class InflightRuns:
    """All of them, by run. One run is never under way twice in one engine."""

    def __init__(self, runs_max: int) -> None:
        self.runs_max = runs_max
        self._by_run: dict[UUID, Inflight] = {}
        self._by_workspace: Counter[int] = Counter()
        self._left = trio.Event()

    def __len__(self) -> int:
        return len(self._by_run)

    def __iter__(self) -> Iterator[Inflight]:
        return iter(list(self._by_run.values()))

    def __contains__(self, run_id: UUID) -> bool:
        return run_id in self._by_run

    @property
    def free(self) -> int:
        """How many more runs may be claimed."""
        return max(self.runs_max - len(self._by_run), 0)

    @property
    def claim_max(self) -> int:
        """How many one claim may take: a quarter of all, so that one app can not fill the engine in a single claim."""
        return min(self.free, max(self.runs_max // 4, 1))

    def full_workspaces(self) -> list[int]:
        """Workspaces that have half of all places or more: an app that swallows its calls must leave room for the others."""
        return [workspace_id for workspace_id, count in self._by_workspace.items() if count >= self._app_max]

    @property
    def _app_max(self) -> int:
        return max(self.runs_max // 2, 1)

    def add(self, inflight: Inflight) -> None:
        if (former := self._by_run.get(inflight.run_id)) is not None:
            # Its lease was lost, and this engine got the next one before the heartbeat told it.
            former.end("lease_lost")
        self._by_run[inflight.run_id] = inflight
        self._by_workspace[inflight.workspace_id] += 1

    def remove(self, inflight: Inflight) -> bool:
        """It has left; whether its workspace stood at its bound, so that runs of it may be due that were passed over."""
        if self._by_run.get(inflight.run_id) is inflight:
            del self._by_run[inflight.run_id]
        was_full = self._by_workspace[inflight.workspace_id] >= self._app_max
        self._by_workspace[inflight.workspace_id] -= 1
        if not self._by_workspace[inflight.workspace_id]:
            del self._by_workspace[inflight.workspace_id]
        left, self._left = self._left, trio.Event()
        left.set()
        return was_full

    def news(self, run_id: UUID) -> None:
        """A checkpoint of this run came in."""
        if (inflight := self._by_run.get(run_id)) is not None:
            inflight.news()

    async def wait_left(self) -> None:
        """Return when an invocation has left."""
        await self._left.wait()

    async def wait_empty(self) -> None:
        """Return when none is under way."""
        while self._by_run:
            await self._left.wait()
