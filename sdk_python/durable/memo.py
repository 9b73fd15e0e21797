"""What the engine remembers of one run, as one invocation knows it: results by step id, in commit order.

Owns the rule of delivery: of all entries that the handler has asked for, the one with the lowest position comes
first. Knows nothing of tasks, bodies or the network; every operation costs O(log n) at most.
"""

import heapq
from collections.abc import Iterable

from durable.wire import MemoEntry


class Memo:
    """The memo of a run. `known`: the highest position the app was told. `seen`: the highest one delivered."""

    def __init__(self, entries: Iterable[MemoEntry]) -> None:
        self.known = 0
        self.seen = 0
        self._entries: dict[str, MemoEntry] = {}
        self._asked: list[tuple[int, str]] = []
        for entry in entries:
            self.add(entry)
        # The last result that an earlier invocation may have delivered already; up to it the handler replays.
        self.replay_until = max((entry.position for entry in self._entries.values() if not entry.abandoned), default=0)

    def add(self, entry: MemoEntry) -> None:
        """Remember an entry that the engine told; telling it twice changes nothing."""
        self.note_known(entry.position)
        self._entries.setdefault(entry.id, entry)

    def entry(self, step_id: str) -> MemoEntry | None:
        return self._entries.get(step_id)

    def ask(self, step_id: str) -> None:
        """Put the entry of this step, which must exist and not be abandoned, in line for delivery."""
        heapq.heappush(self._asked, (self._entries[step_id].position, step_id))

    @property
    def next_asked(self) -> MemoEntry | None:
        """The asked-for entry with the lowest position: the next to be delivered."""
        return self._entries[self._asked[0][1]] if self._asked else None

    def take_next_asked(self) -> MemoEntry | None:
        """The asked-for entry with the lowest position. It is forgotten: no second step has this id."""
        if not self._asked:
            return None
        _, step_id = heapq.heappop(self._asked)
        return self._entries.pop(step_id)

    def note_known(self, position: int) -> None:
        if position > self.known:
            self.known = position

    def note_delivered(self, position: int) -> None:
        if position > self.seen:
            self.seen = position

    @property
    def is_replaying(self) -> bool:
        return self.seen < self.replay_until


class StepIds:
    """Counts the uses of step ids: `charge`, `charge#2`, `charge#3` … in call order (protocol section 7.2)."""

    def __init__(self) -> None:
        self._uses: dict[str, int] = {}
        self._open: set[str] = set()

    def is_open(self, given_id: str) -> bool:
        """Whether an earlier use of this id has not ended yet."""
        return given_id in self._open

    def take(self, given_id: str) -> str:
        """The name of the next use of this id, which is open from now on."""
        uses = self._uses.get(given_id, 0) + 1
        self._uses[given_id] = uses
        self._open.add(given_id)
        return given_id if uses == 1 else f"{given_id}#{uses}"

    def close(self, given_id: str) -> None:
        self._open.discard(given_id)
