"""The values of memo entries that came as references: which of them are asked for, and those that are here.

Owns nothing but that list; it asks `Values` for all at once that the handler asked for at the same time.
"""

from collections.abc import Iterable

from msgspec import UNSET, Raw

from durable.values import Values
from durable.wire import MemoEntry, Op, StepOp


class FetchedValues:
    """The references of one run in one invocation."""

    def __init__(self, run_id: str, values: Values) -> None:
        self._run_id = run_id
        self._values = values
        self._wanted: list[str] = []
        self._here: dict[str, Raw] = {}

    def want(self, entry: MemoEntry) -> None:
        """The handler has asked for this entry: its value goes into the next `fetch`."""
        if isinstance(entry.ref, str):
            self._wanted.append(entry.ref)

    def note_stored(self, ops: Iterable[Op], resolved: Iterable[MemoEntry]) -> None:
        """These ops were committed as these entries: values that were stored for them are in the memo now."""
        stored = {op.id: op.ref for op in ops if isinstance(op, StepOp) and isinstance(op.ref, str)}
        for entry in resolved:
            if entry.id in stored and isinstance(entry.ref, str):
                self._values.known_as(self._run_id, stored[entry.id], entry.ref)

    @property
    def has_wanted(self) -> bool:
        return bool(self._wanted)

    def is_missing(self, entry: MemoEntry) -> bool:
        """Whether the value of this entry has not come yet."""
        return entry.data is UNSET and isinstance(entry.ref, str) and entry.ref not in self._here

    def take(self, entry: MemoEntry) -> Raw | None:
        """The value of an entry that came as a reference, once."""
        return self._here.pop(entry.ref, None) if isinstance(entry.ref, str) else None

    async def fetch(self) -> None:
        """Get all that is wanted. Raises what `Values.fetch` does."""
        wanted, self._wanted = self._wanted, []
        values = await self._values.fetch(self._run_id, wanted)
        self._here.update({ref: values[ref] for ref in wanted})
