"""The invocations that this engine executes now: who they are, until when, the scope through which each is ended, and for how many more
there is room.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal
from uuid import UUID

import trio

from engine.core.outcome import Outcome
from engine.nursery.app_pace import AppPace
from engine.store.read_invocations import Handover

BYTES_IN_FLIGHT_MAX = 64 << 20
NEWS_SECONDS_MIN = 1.0
# What an invocation is taken to weigh until some have been seen.
EXPECTED_BYTES_AT_FIRST = 2048.0
# A workspace with less room than this has its turn in claims of its own, so that it does not make everyone's claims small.
SMALL_ROOM = 16
WORKSPACES_REMEMBERED_MAX = 1000

EndCause = Literal["lease_lost", "drain"]


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
    is_probe: bool = False
    is_taken: bool = False
    has_started: bool = False
    outcome: Outcome | None = None
    settled: trio.Event = field(default_factory=trio.Event)

    @property
    def run_id(self) -> UUID:
        return self.handover.lease.run_id

    @property
    def workspace_id(self) -> int:
        return self.handover.lease.workspace_id

    @property
    def app_keeps_lease(self) -> bool:
        """Whether the app renews the lease itself: it can, it has begun, and it has not said yet how it ended."""
        offer = self.handover.offer
        return offer is not None and offer.has_alive and self.has_started and self.outcome is None

    def news(self) -> None:
        """The app showed that the run moves: the time for its next step begins again."""
        deadline = trio.current_time() + self.step_timeout_seconds
        # Moving a deadline costs more than the rest of a line; a second more or less is nothing to it.
        if self.scope.deadline == float("inf") or deadline > self.scope.deadline + NEWS_SECONDS_MIN:
            self.scope.deadline = deadline

    def settle(self, outcome: Outcome) -> None:
        """This is how it turned out; the first word counts."""
        if self.outcome is None:
            self.outcome = outcome
            self.settled.set()

    def end(self, cause: EndCause) -> None:
        """End it here; the app's bodies go on and are told when they report."""
        if self.end_cause is None:
            self.end_cause = cause
        self.scope.cancel()


@dataclass(frozen=True, slots=True)
class Room:
    """How many runs a claim may take, and the workspaces of which it may take none."""

    runs_max: int
    full_workspaces: list[int]


class InflightRuns:
    """All of them, by run. One run is never under way twice in one engine. Reserved places are taken, though nobody is there yet."""

    def __init__(self, runs_max: int, bytes_max: int = BYTES_IN_FLIGHT_MAX) -> None:
        self.runs_max = runs_max
        self.bytes_max = bytes_max
        self.reserved = 0
        self.size_bytes = 0
        # Called when a workspace that had no room has some: runs of it may be due that were passed over.
        self.on_room: Callable[[], None] = lambda: None
        self._expected_bytes = EXPECTED_BYTES_AT_FIRST
        self._by_run: dict[UUID, Inflight] = {}
        self._count = 0
        self._paces: dict[int, AppPace] = {}
        self._left = trio.Event()

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Inflight]:
        return iter(list(self._by_run.values()))

    def __contains__(self, run_id: UUID) -> bool:
        return run_id in self._by_run

    @property
    def app_max(self) -> int:
        """What one app may have at most: nearly all places, and some stay for others."""
        return max(self.runs_max - max(self.runs_max // 8, 1), 1)

    @property
    def claim_max(self) -> int:
        """How many one claim may take: a quarter of all, since an app that is new may get a whole claim."""
        return max(self.runs_max // 4, 1)

    def room(self, *, for_small: bool = False) -> Room:
        """What may be claimed now. `for_small`: also of workspaces with little room, each claim then being as small as the least."""
        now = trio.current_time()
        runs_max = min(self._free, self.claim_max)
        full: list[int] = []
        for workspace_id, pace in self._paces.items():
            room = pace.room(now)
            is_small = room < self._small_room
            if room == 0 or (is_small and not for_small):
                full.append(workspace_id)
            elif pace.runs or is_small:
                runs_max = min(runs_max, room)
        return Room(runs_max, full)

    def has_small(self) -> bool:
        """Whether a workspace with little room has some."""
        now = trio.current_time()
        return any(0 < pace.room(now) < self._small_room for pace in self._paces.values())

    def pace(self, workspace_id: int) -> AppPace:
        """What is known of a workspace's app."""
        pace = self._paces.get(workspace_id)
        if pace is None:
            if len(self._paces) >= WORKSPACES_REMEMBERED_MAX:
                self._paces = {known: pace for known, pace in self._paces.items() if pace.runs or pace.is_troubled}
            pace = self._paces[workspace_id] = AppPace(self.app_max, self.bytes_max // 4 * 3)
        return pace

    def took(self, inflight: Inflight, sent_at: float) -> None:
        """The app has taken an invocation."""
        pace = self.pace(inflight.workspace_id)
        now = trio.current_time()
        room_before = pace.room(now)
        self._count_taken(inflight, pace)
        pace.took(sent_at, now)
        self._tell_of_room(room_before, pace.room(now))

    def add(self, inflight: Inflight) -> None:
        if (former := self._by_run.get(inflight.run_id)) is not None:
            # Its lease was lost, and this engine got the next one before the heartbeat told it.
            former.end("lease_lost")
        self._by_run[inflight.run_id] = inflight
        self._count += 1
        size_bytes = inflight.handover.size_bytes
        self._expected_bytes += (size_bytes - self._expected_bytes) / 16
        self.size_bytes += size_bytes
        pace = self.pace(inflight.workspace_id)
        pace.runs += 1
        pace.untaken += 1
        pace.size_bytes += size_bytes

    def remove(self, inflight: Inflight) -> None:
        """It has left."""
        if self._by_run.get(inflight.run_id) is inflight:
            del self._by_run[inflight.run_id]
        self._count -= 1
        size_bytes = inflight.handover.size_bytes
        self.size_bytes -= size_bytes
        pace = self.pace(inflight.workspace_id)
        now = trio.current_time()
        room_before = pace.room(now)
        pace.runs -= 1
        self._count_taken(inflight, pace)
        pace.size_bytes -= size_bytes
        if inflight.is_probe or not pace.runs:
            # A probe that ended otherwise (its lease was lost, the engine drains) has found nothing out.
            pace.is_probing = False
        self._tell_of_room(room_before, pace.room(now))
        self.wake()

    def news(self, run_id: UUID) -> None:
        """A checkpoint of this run came in."""
        if (inflight := self._by_run.get(run_id)) is not None:
            inflight.news()

    def lease_renewed(self, run_id: UUID, lease_seconds: float) -> None:
        """The app renewed the lease of this run just now."""
        if (inflight := self._by_run.get(run_id)) is not None:
            inflight.lease_ends_at = trio.current_time() + lease_seconds

    def wake(self) -> None:
        """A place is free again."""
        left, self._left = self._left, trio.Event()
        left.set()

    async def wait_left(self) -> None:
        """Return when an invocation has left or a reserved place was given back."""
        await self._left.wait()

    async def wait_empty(self) -> None:
        """Return when none is under way and no place is reserved."""
        while self._count or self.reserved:
            await self._left.wait()

    def _count_taken(self, inflight: Inflight, pace: AppPace) -> None:
        """The app has taken it, or it has left without that."""
        if not inflight.is_taken:
            inflight.is_taken = True
            pace.untaken -= 1

    def _tell_of_room(self, room_before: int, room: int) -> None:
        # Only where it had none, or has its turn with the others again: a hint for each that leaves would be a claim for each.
        if room > room_before and (room_before == 0 or room_before < self._small_room <= room):
            self.on_room()

    @property
    def _free(self) -> int:
        if self.size_bytes >= self.bytes_max:
            return 0
        by_bytes = max(int((self.bytes_max - self.size_bytes) / max(self._expected_bytes, 1)), 1)
        return max(min(self.runs_max - self._count - self.reserved, by_bytes), 0)

    @property
    def _small_room(self) -> int:
        return min(SMALL_ROOM, max(self.app_max // 4, 1))
