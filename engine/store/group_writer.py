"""One writer for one kind of write: tasks hand it rows and wait, it writes all that is there as one group, and repeats.

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


class _Submission(Generic[Answer]):
    """What one task waits for: the answers of all its rows, or an error."""

    __slots__ = ("answers", "done", "error", "rows_left")

    def __init__(self, rows_count: int) -> None:
        self.answers: list[Answer | None] = [None] * rows_count
        self.rows_left = rows_count
        self.error: BaseException | None = None
        self.done = trio.Event()

    def count_off(self, rows_count: int) -> None:
        """So many of its rows are answered or refused."""
        self.rows_left -= rows_count
        if self.rows_left == 0:
            self.done.set()


class _Piece(Generic[Row, Answer]):
    """Rows that stay in one group: a submission, or a row of one that had to wait for the next group."""

    __slots__ = ("first_place", "is_repeated", "rows", "submission")

    def __init__(self, submission: _Submission[Answer], first_place: int, rows: Sequence[Row], *, is_repeated: bool) -> None:
        self.submission = submission
        self.first_place = first_place
        self.rows = rows
        self.is_repeated = is_repeated


class GroupWriter(Generic[Row, Answer]):
    """`flush(rows, is_repeated)` writes a group and gives one answer each, or `REQUEUE`.

    When it raises, the rows are written again, or refused: if a part of them may be written by then, it must know them again.
    """

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
        self._queue: deque[_Piece[Row, Answer]] = deque()
        self._rows_waiting = 0
        self._filled = trio.Event()

    async def submit(self, row: Row) -> Answer:
        """Write `row`; its answer once it is committed."""
        return (await self.submit_all([row]))[0]

    async def submit_all(self, rows: Sequence[Row]) -> list[Answer]:
        """Write rows, all in one group; their answers. Cancelling stops waiting, not the write."""
        if self._rows_waiting + len(rows) > self._rows_waiting_max:
            raise WriterOverloaded(f"{self._rows_waiting:,} rows wait to be written")
        submission: _Submission[Answer] = _Submission(len(rows))
        if rows:
            self._queue.append(_Piece(submission, 0, rows, is_repeated=False))
            self._rows_waiting += len(rows)
            self._filled.set()
            await submission.done.wait()
        if submission.error is not None:
            raise submission.error
        return submission.answers  # type: ignore[return-value]  # all are there when it is done

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Write groups until cancelled."""
        task_status.started()
        while True:
            if not self._queue:
                self._filled = trio.Event()
                await self._filled.wait()
            await self._write(self._take_group())

    def _take_group(self) -> list[_Piece[Row, Answer]]:
        """The next rows; what was submitted together stays together."""
        group: list[_Piece[Row, Answer]] = []
        rows_count = 0
        while self._queue and rows_count < ROWS_PER_GROUP_MAX:
            piece = self._queue.popleft()
            rows_count += len(piece.rows)
            group.append(piece)
        self._rows_waiting -= rows_count
        return group

    async def _write(self, group: list[_Piece[Row, Answer]]) -> None:
        pause_seconds = 0.02
        tries = 0
        rows = [row for piece in group for row in piece.rows]
        while True:
            tries += 1
            is_repeated = any(piece.is_repeated for piece in group)
            try:
                answers = await self._flush(rows, is_repeated)
            except (DatabaseUnavailable, TransactionConflict) as error:
                log.warning("write_repeated", writer=self.name, rows=len(rows), error=str(error))
                if isinstance(error, CommitUnknown):
                    for piece in group:
                        piece.is_repeated = True
                await trio.sleep(pause_seconds)
                pause_seconds = min(pause_seconds * 2, 1.0)
                is_too_much = isinstance(error, StatementTimedOut)
                if tries < TRIES_WHOLE_MAX or (len(group) == 1 and not is_too_much):
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

    async def _write_halves(self, group: list[_Piece[Row, Answer]], error: Exception) -> None:
        """Write both halves of a group that failed; a single submission is refused, or it would stand in everyone's way."""
        if len(group) == 1:
            [piece] = group
            log.error("rows_refused", writer=self.name, rows=len(piece.rows), error=repr(error), exc_info=error)
            piece.submission.error = error
            piece.submission.count_off(len(piece.rows))
            return
        middle = len(group) // 2
        await self._write(group[:middle])
        await self._write(group[middle:])

    def _answer(self, group: list[_Piece[Row, Answer]], answers: Sequence[Answer | Requeue]) -> int:
        """Answer what was written, put the rest in front of the queue; how many were answered."""
        assert len(answers) == sum(len(piece.rows) for piece in group)
        again: list[_Piece[Row, Answer]] = []
        index = 0
        for piece in group:
            submission, place = piece.submission, piece.first_place
            put_off = 0
            for row in piece.rows:
                answer = answers[index]
                if isinstance(answer, Requeue):
                    # The rest of its submission may be written: on its own, or it would be halved together with strangers.
                    again.append(_Piece(submission, place, [row], is_repeated=piece.is_repeated))
                    put_off += 1
                else:
                    submission.answers[place] = answer
                index += 1
                place += 1
            submission.count_off(len(piece.rows) - put_off)
        self._queue.extendleft(reversed(again))
        self._rows_waiting += len(again)
        return len(answers) - len(again)
