"""Wake-up hints: "a run may be due", "a timer came nearer", "this run has ended", "a leased run has news". A hint may be lost or
wrong; rows are the truth.

A lookout gives them anew once a second where there is something to do, so a lost hint costs time and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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


@dataclass(frozen=True, eq=False, slots=True)
class NewsWatch:
    """Someone who waits for news of these runs."""

    run_ids: frozenset[UUID]
    hint: Hint


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
        self._run_ends: dict[UUID, list[Hint]] = {}
        self._news_watches: set[NewsWatch] = set()
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
        elif name == "run_news":
            # It names no runs: whoever watches any looks at once.
            for watch in self._news_watches:
                watch.hint.give()

    def runs_have_news(self, run_ids: Iterable[UUID]) -> None:
        """Something came to leased runs from outside: a wait has ended, or they were cancelled."""
        wanted = set(run_ids)
        for watch in self._news_watches:
            if not watch.run_ids.isdisjoint(wanted):
                watch.hint.give()
        self.tell_others("run_news")

    @contextmanager
    def watch_news(self, run_ids: Iterable[UUID]) -> Iterator[Hint]:
        """The hint that one of these runs has news, while the block runs."""
        watch = NewsWatch(frozenset(run_ids), Hint())
        self._news_watches.add(watch)
        try:
            yield watch.hint
        finally:
            self._news_watches.discard(watch)

    def runs_ended(self, run_ids: Iterable[UUID]) -> None:
        for run_id in run_ids:
            for hint in self._run_ends.get(run_id, ()):
                hint.give()

    def drain_begins(self) -> None:
        """Whoever waits for an end or for news is answered now."""
        for watch in self._news_watches:
            watch.hint.give()
        for waiting in self._run_ends.values():
            for hint in waiting:
                hint.give()

    @contextmanager
    def watch_run_end(self, run_id: UUID) -> Iterator[Hint]:
        """The hint that this process saw the run end, while the block runs: look after it began, and no end is missed."""
        hint = Hint()
        self._run_ends.setdefault(run_id, []).append(hint)
        try:
            yield hint
        finally:
            watching = self._run_ends[run_id]
            watching.remove(hint)
            if not watching:
                del self._run_ends[run_id]
