"""One writer for one kind of write: tasks hand it a row and wait, it writes all that is there in one transaction, and repeats.

It never waits for a group to fill: an idle system writes at once. A group that fails is halved until the bad row is alone, so one row
never fails its neighbours; a lost database is waited for, and a commit that may have happened is repeated with the same ids.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, NoReturn, TypeVar

import structlog
import trio

from engine.store.database import CommitUnknown, DatabaseUnavailable, StatementTimedOut, TransactionConflict

Row = TypeVar("Row")
Answer = TypeVar("Answer")

log = structlog.get_logger(__name__)

ROWS_PER_GROUP_MAX = 256
# So often a group is repeated whole. Then it is halved: it may be the group that is too much for the database.
TRIES_WHOLE_MAX = 3


class Requeue:
    """The answer for a row whose run another transaction holds: it goes into the next group."""


REQUEUE = Requeue()


class WriterOverloaded(Exception):
    """More rows wait than may. Send again later (429)."""

    code = "overloaded"


class _Entry(Generic[Row, Answer]):
    __slots__ = ("answer", "done", "error", "is_last", "is_repeated", "row")

    def __init__(self, row: Row, *, is_last: bool) -> None:
        self.row = row
        self.is_last = is_last
        self.done = trio.Event()
        self.answer: Answer | None = None
        self.error: BaseException | None = None
        self.is_repeated = False


class GroupWriter(Generic[Row, Answer]):
    """`flush(rows, is_repeated)` writes rows in one transaction and gives one answer each, or `REQUEUE`."""

    def __init__(
        self,
        name: str,
        flush: Callable[[Sequence[Row], bool], Awaitable[Sequence[Answer | Requeue]]],
        *,
        rows_waiting_max: int = 20_000,
    ) -> None:
        self.name = name
        self._flush = flush
        self._rows_waiting_max = rows_waiting_max
        self._queue: deque[_Entry[Row, Answer]] = deque()
        self._filled = trio.Event()

    async def submit(self, row: Row) -> Answer:
        """Write `row`; its answer once it is committed."""
        return (await self.submit_all([row]))[0]

    async def submit_all(self, rows: Sequence[Row]) -> list[Answer]:
        """Write rows, all in one transaction or none; their answers. Cancelling stops waiting, not the write."""
        if len(self._queue) + len(rows) > self._rows_waiting_max:
            raise WriterOverloaded(f"{len(self._queue):,} rows wait to be written")
        entries = [_Entry[Row, Answer](row, is_last=place == len(rows)) for place, row in enumerate(rows, 1)]
        self._queue.extend(entries)
        self._filled.set()
        for entry in entries:
            await entry.done.wait()
        for entry in entries:
            if entry.error is not None:
                raise entry.error
        return [entry.answer for entry in entries]  # type: ignore[misc]

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Write groups until cancelled."""
        task_status.started()
        while True:
            if not self._queue:
                self._filled = trio.Event()
                await self._filled.wait()
            await self._write(self._take_group())

    def _take_group(self) -> list[_Entry[Row, Answer]]:
        """The next rows; what was submitted together stays together."""
        group: list[_Entry[Row, Answer]] = []
        while self._queue and (len(group) < ROWS_PER_GROUP_MAX or not group[-1].is_last):
            group.append(self._queue.popleft())
        return group

    async def _write(self, group: list[_Entry[Row, Answer]]) -> None:
        pause_seconds = 0.02
        tries = 0
        while True:
            tries += 1
            is_repeated = any(entry.is_repeated for entry in group)
            try:
                answers = await self._flush([entry.row for entry in group], is_repeated)
            except (DatabaseUnavailable, TransactionConflict) as error:
                log.warning("write_repeated", writer=self.name, rows=len(group), error=str(error))
                if isinstance(error, CommitUnknown):
                    for entry in group:
                        entry.is_repeated = True
                await trio.sleep(pause_seconds)
                pause_seconds = min(pause_seconds * 2, 1.0)
                is_too_much = isinstance(error, StatementTimedOut)
                if tries < TRIES_WHOLE_MAX or (_middle(group) is None and not is_too_much):
                    continue
                await self._write_halves(group, error)
                return
            except Exception as error:
                await self._write_halves(group, error)
                return
            if self._answer(group, answers) == 0:
                # All their runs are locked elsewhere; a moment, or this would spin.
                await trio.sleep(0.002)
            return

    async def _write_halves(self, group: list[_Entry[Row, Answer]], error: Exception) -> None:
        """Write both halves of a group that failed; a single submission is refused, or it would stand in everyone's way."""
        middle = _middle(group)
        if middle is None:
            log.error("rows_refused", writer=self.name, rows=len(group), error=repr(error), exc_info=error)
            for entry in group:
                entry.error = error
                entry.done.set()
            return
        await self._write(group[:middle])
        await self._write(group[middle:])

    def _answer(self, group: list[_Entry[Row, Answer]], answers: Sequence[Answer | Requeue]) -> int:
        """Answer what was written, put the rest in front of the queue; how many were answered."""
        again: list[_Entry[Row, Answer]] = []
        for entry, answer in zip(group, answers, strict=True):
            if isinstance(answer, Requeue):
                # The rest of its submission may be written: on its own, or it would be halved together with strangers.
                entry.is_last = True
                again.append(entry)
            else:
                entry.answer = answer
                entry.done.set()
        self._queue.extendleft(reversed(again))
        return len(group) - len(again)


def _middle(group: list[_Entry[Row, Answer]]) -> int | None:
    """Where a group is halved: at the end of a submission. None when it is a single one."""
    ends = [place for place, entry in enumerate(group, 1) if entry.is_last and place < len(group)]
    return ends[len(ends) // 2] if ends else None
