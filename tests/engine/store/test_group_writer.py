"""The group writer: writes what is there, repeats what may have happened, and keeps one bad row from its neighbours."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from engine.store.database import CommitUnknown, DatabaseUnavailable
from engine.store.group_writer import REQUEUE, ROWS_PER_GROUP_MAX, GroupWriter, Requeue, WriterOverloaded

Flush = Callable[[Sequence[int], bool], Awaitable[Sequence[str | Requeue]]]


async def written(flush: Flush, rows: list[int]) -> list[object]:
    """What each row's sender gets: its answer, or the error."""
    writer: GroupWriter[int, str] = GroupWriter("test", flush)
    outcomes: dict[int, object] = {}

    async def send(row: int) -> None:
        try:
            outcomes[row] = await writer.submit(row)
        except Exception as error:
            outcomes[row] = repr(error)

    async with trio.open_nursery() as nursery:
        async with trio.open_nursery() as senders:
            for row in rows:
                senders.start_soon(send, row)
            await wait_all_tasks_blocked()
            await nursery.start(writer.serve)
        nursery.cancel_scope.cancel()
    return [outcomes[row] for row in rows]


async def test_what_waits_is_written_in_one_group(autojump_clock: object) -> None:
    groups: list[list[int]] = []

    async def flush(rows: Sequence[int], is_repeated: bool) -> list[str]:
        groups.append(list(rows))
        return [f"wrote {row}" for row in rows]

    assert await written(flush, [1, 2, 3]) == ["wrote 1", "wrote 2", "wrote 3"]
    assert len(groups) == 1 and sorted(groups[0]) == [1, 2, 3]


async def test_a_bad_row_fails_alone(autojump_clock: object) -> None:
    async def flush(rows: Sequence[int], is_repeated: bool) -> list[str]:
        if 5 in rows:
            raise ValueError("five")
        return ["ok"] * len(rows)

    outcomes = await written(flush, list(range(10)))
    assert outcomes[5] == "ValueError('five')"
    assert [outcome for outcome in outcomes if outcome == "ok"] == ["ok"] * 9


async def test_a_lost_database_is_waited_for(autojump_clock: object) -> None:
    tries = 0

    async def flush(rows: Sequence[int], is_repeated: bool) -> list[str]:
        nonlocal tries
        tries += 1
        if tries < 20:
            raise DatabaseUnavailable("gone")
        assert not is_repeated
        return ["ok"] * len(rows)

    assert await written(flush, [1]) == ["ok"]


async def test_a_commit_that_may_have_happened_is_repeated_as_such(autojump_clock: object) -> None:
    seen: list[bool] = []

    async def flush(rows: Sequence[int], is_repeated: bool) -> list[str]:
        seen.append(is_repeated)
        if len(seen) == 1:
            raise CommitUnknown("lost")
        if len(seen) == 2:
            raise DatabaseUnavailable("still gone")
        return ["ok"] * len(rows)

    assert await written(flush, [1]) == ["ok"]
    assert seen == [False, True, True]


async def test_a_row_whose_run_is_held_goes_into_the_next_group(autojump_clock: object) -> None:
    held = {2: 3}

    async def flush(rows: Sequence[int], is_repeated: bool) -> list[str | Requeue]:
        answers: list[str | Requeue] = []
        for row in rows:
            if held.get(row, 0):
                held[row] -= 1
                answers.append(REQUEUE)
            else:
                answers.append("ok")
        return answers

    assert await written(flush, [1, 2, 3]) == ["ok", "ok", "ok"]


async def test_groups_are_bounded(autojump_clock: object) -> None:
    sizes: list[int] = []

    async def flush(rows: Sequence[int], is_repeated: bool) -> list[str]:
        sizes.append(len(rows))
        return ["ok"] * len(rows)

    await written(flush, list(range(ROWS_PER_GROUP_MAX * 2 + 1)))
    assert max(sizes) == ROWS_PER_GROUP_MAX and sum(sizes) == ROWS_PER_GROUP_MAX * 2 + 1


async def test_what_was_submitted_together_is_written_together_or_not_at_all(autojump_clock: object) -> None:
    groups: list[list[int]] = []

    async def flush(rows: Sequence[int], is_repeated: bool) -> list[str]:
        if 7 in rows:
            raise ValueError("seven")
        groups.append(list(rows))
        return ["ok"] * len(rows)

    writer: GroupWriter[int, str] = GroupWriter("test", flush)
    refused: list[str] = []

    async def send(rows: list[int]) -> None:
        try:
            await writer.submit_all(rows)
        except ValueError as error:
            refused.append(str(error))

    async with trio.open_nursery() as nursery:
        async with trio.open_nursery() as senders:
            senders.start_soon(send, list(range(10)))
            senders.start_soon(send, list(range(100, 100 + 3 * ROWS_PER_GROUP_MAX)))
            senders.start_soon(send, [1000])
            await wait_all_tasks_blocked()
            await nursery.start(writer.serve)
        nursery.cancel_scope.cancel()
    assert refused == ["seven"]
    assert sorted(row for group in groups for row in group) == [*range(100, 100 + 3 * ROWS_PER_GROUP_MAX), 1000]


async def test_too_many_waiting_rows_are_refused_before_memory_grows() -> None:
    async def flush(rows: Sequence[int], is_repeated: bool) -> list[str]:
        return ["ok"] * len(rows)

    writer: GroupWriter[int, str] = GroupWriter("test", flush, rows_waiting_max=10)
    with pytest.raises(WriterOverloaded):
        await writer.submit_all(list(range(11)))


async def test_a_sender_that_stops_waiting_does_not_stop_the_write() -> None:
    wrote: list[int] = []

    async def flush(rows: Sequence[int], is_repeated: bool) -> list[str]:
        await trio.sleep(0.01)
        wrote.extend(rows)
        return ["ok"] * len(rows)

    writer: GroupWriter[int, str] = GroupWriter("test", flush)
    async with trio.open_nursery() as nursery:
        await nursery.start(writer.serve)
        with trio.move_on_after(0.001):
            await writer.submit(1)
        assert await writer.submit(2) == "ok"
        nursery.cancel_scope.cancel()
    assert wrote == [1, 2]
