"""Wake-up hints: "a run may be due", "a timer came nearer", "this run has ended". A hint may be lost or wrong; rows are the truth.

A lookout gives them anew once a second where there is something to do, so a lost hint costs time and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from uuid import UUID

import trio

# How near a timer is when it gets an alarm.
NEAR_SECONDS = 4.0


class Hint:
    """Wakes all who wait. A hint given while nobody waits is kept for the next who does."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def give(self) -> None:
        self._event.set()

    async def wait(self) -> None:
        """Return at the next hint, or at once if one was given since the last return."""
        await self._event.wait()
        self._event = trio.Event()


class Hints:
    """The hints of one engine process. `tell_others` is called with the name of each that other engines should hear too."""

    def __init__(self) -> None:
        self.run_due = Hint()
        self.timer_near = Hint()
        self.timer_rang = Hint()
        self.lease_ended = Hint()
        self.promotion_owed = Hint()
        self.backfill_owed = Hint()
        self.tell_others: Callable[[str], None] = lambda name: None
        self.has_others = False
        self._run_ends: dict[UUID, trio.Event] = {}
        self._held_workspaces: set[int] = set()

    def runs_are_due(self) -> None:
        self.run_due.give()
        self.tell_others("run_due")

    def timer_is_near(self, in_seconds: float) -> None:
        """A timer was set. Far ones are found by looking; near ones want their alarm now."""
        if in_seconds < NEAR_SECONDS:
            self.timer_near.give()

    def note_held(self, workspace_id: int) -> None:
        """Lanes of this workspace were held because its app could not be reached."""
        self._held_workspaces.add(workspace_id)

    def forget_held(self, workspace_id: int) -> None:
        self._held_workspaces.discard(workspace_id)

    def is_held(self, workspace_id: int) -> bool:
        return workspace_id in self._held_workspaces

    def heard(self, name: str) -> None:
        """A hint from another engine."""
        if name == "run_due":
            self.run_due.give()
        elif name == "timer_near":
            self.timer_near.give()

    def runs_ended(self, run_ids: Iterable[UUID]) -> None:
        for run_id in run_ids:
            event = self._run_ends.pop(run_id, None)
            if event is not None:
                event.set()

    async def wait_run_end(self, run_id: UUID, at_most_seconds: float) -> None:
        """Return when this process saw the run end, or after the time."""
        event = self._run_ends.setdefault(run_id, trio.Event())
        try:
            with trio.move_on_after(at_most_seconds):
                await event.wait()
        finally:
            if not event.is_set() and not event.statistics().tasks_waiting:
                self._run_ends.pop(run_id, None)
