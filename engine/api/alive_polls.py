"""The open polls of app processes: one a process, so that a newer one ends the older one, whose list of runs is out of date."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from engine.store.hints import Hint


class PollTurn:
    """That of one poll: over when a newer one of its process came."""

    __slots__ = ("_hint", "is_over")

    def __init__(self, hint: Hint) -> None:
        self._hint = hint
        self.is_over = False

    def end(self) -> None:
        self.is_over = True
        self._hint.give()


class AlivePolls:
    """Of one engine. A poll of the same process at another engine just stays until its time is over."""

    def __init__(self) -> None:
        self._newest: dict[tuple[int, str], PollTurn] = {}

    @contextmanager
    def newest(self, workspace_id: int, process: str, hint: Hint) -> Iterator[PollTurn]:
        """End the process's former poll; `hint` is given when a newer one ends this turn."""
        turn = PollTurn(hint)
        former = self._newest.get((workspace_id, process))
        self._newest[workspace_id, process] = turn
        if former is not None:
            former.end()
        try:
            yield turn
        finally:
            if self._newest.get((workspace_id, process)) is turn:
                del self._newest[workspace_id, process]
