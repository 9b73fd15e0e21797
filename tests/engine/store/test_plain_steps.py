"""Plain reports have a way of their own into the database; it writes and answers what the general way would."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Raw

from engine.core.outcome import Reported
from engine.nursery.group_writers import make_report_writer, write_reports
from engine.store import apply_plain_steps as module
from engine.store.apply_outcomes import RunReport
from engine.store.apply_plain_steps import PlainReports, apply_plain_steps
from engine.store.cancel_run import cancel_run
from engine.store.database import Database, open_database
from engine.store.fire_timers import fire_timers
from engine.store.group_writer import Requeue
from engine.store.hints import Hints
from engine.store.lease import Lease
from engine.store.sql import Connection
from protocol.ops import Complete, Fail, Op, Sleep
from protocol.requests import EntryAnswer
from tests.engine.store.world import LEASE_SECONDS, World, function, make_world, step, step_error, wait

DONE = Complete(Raw(b'{"done":true}'))


async def flush(world: World, *reports: RunReport) -> list[EntryAnswer | Requeue]:
    """One group, as the writer of reports writes it."""
    return await write_reports(world.database, Hints(), reports, LEASE_SECONDS)


async def plainly(world: World, *reports: RunReport) -> dict[UUID, EntryAnswer]:
    """The answers of those that the one statement took."""
    plain = PlainReports()
    for report in reports:
        assert plain.take(report)
    return await apply_plain_steps(world.database, plain, LEASE_SECONDS)


# Both ways write the same --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Said:
    """A report of a random run: how far its `known` is behind or ahead, and whether it is of the right lease."""

    ops: tuple[Op, ...]
    ends: bool
    known_off: int
    is_stale: bool
    is_foreign: bool


@dataclass(frozen=True)
class Before:
    """What a run's row says before the first report."""

    counts: tuple[int, int, int, int]
    lease_seconds: float
    memo_bytes: int
    has_taken_event: bool


STEP_IDS = st.sampled_from(["a", "b", "c", "charge card", "ключ"])
STEPS = st.builds(step, STEP_IDS, st.sampled_from([1, None, "x" * 50, {"é": [1, 2]}]))
OTHER_OPS = st.one_of(st.builds(step_error, STEP_IDS), st.just(Sleep("s", seconds=60.0)), st.just(wait("w", "approved")))
ENDS = st.sampled_from([DONE, DONE, DONE, Complete(Raw(b"null")), Fail(Raw(b'{"name":"E","message":"no"}'), False), None])
RARELY = st.integers(0, 9).map(lambda number: number == 0)


@st.composite
def said(draw: st.DrawFn) -> Said:
    ops: list[Op] = draw(st.lists(STEPS, max_size=3))
    if draw(RARELY):
        ops.append(draw(OTHER_OPS))
    ends = draw(RARELY) or draw(RARELY)
    if ends and (end := draw(ENDS)) is not None:
        ops.append(end)
    return Said(tuple(ops), ends, draw(st.sampled_from([0, 0, 0, 0, 0, -1, 1])), draw(RARELY), draw(RARELY))


BEFORE = st.builds(
    Before,
    st.tuples(st.integers(1, 3), st.integers(0, 2), st.integers(0, 2), st.integers(0, 2)),
    st.sampled_from([29.0, 21.0, 10.0, -1.0]),
    st.sampled_from([0, 0, 64 * 1024 * 1024 - 60]),
    st.booleans(),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(BEFORE, st.lists(st.lists(said(), min_size=2, max_size=2), min_size=1, max_size=4), st.booleans())
async def test_both_ways_write_the_same_and_answer_the_same(
    postgres_dsn: str, before: Before, script: list[list[Said]], is_limited: bool
) -> None:
    # Opened here: a fixture is set up once for all examples, and a pool belongs to one loop.
    async with open_database(postgres_dsn) as database:
        await _compare(database, before, script, is_limited)


async def _compare(database: Database, before: Before, script: list[list[Said]], is_limited: bool) -> None:
    world = await make_world(database, function("f", "go", limit=10_000 if is_limited else None, retries=0))
    fast = [await _leased(world, before) for _ in range(2)]
    slow = [await _leased(world, before) for _ in range(2)]
    for round_ in script:
        places = [await _position(world, lease.run_id) for lease in slow]
        fast_answers = await flush(world, *_reports(world, fast, round_, places))
        slow_answers = (await world.apply(*_reports(world, slow, round_, places))).answers
        assert _comparable(fast_answers) == _comparable(slow_answers)
    assert await _written(world, fast) == await _written(world, slow)


async def _leased(world: World, before: Before) -> Lease:
    run_id = await world.start()
    [lease] = [lease for lease in await world.claim() if lease.run_id == run_id]
    attempt, interruptions, undelivered, mismatches = before.counts
    await world.rows(
        "UPDATE live_run SET attempt = $2, interruptions = $3, undelivered = $4, mismatches = $5, memo_bytes = $6, "
        "due_at = clock_timestamp() + make_interval(secs => $7) WHERE run_id = $1",
        run_id,
        attempt,
        interruptions,
        undelivered,
        mismatches,
        before.memo_bytes,
        before.lease_seconds,
    )
    if before.has_taken_event:
        await world.rows("INSERT INTO taken_event VALUES ($1, gen_random_uuid())", run_id)
    return lease


async def _position(world: World, run_id: UUID) -> int:
    rows = await world.rows("SELECT position FROM live_run WHERE run_id = $1", run_id)
    return int(rows[0]["position"]) if rows else 0


def _reports(world: World, leases: Sequence[Lease], round_: Sequence[Said], places: Sequence[int]) -> list[RunReport]:
    return [
        RunReport(
            world.workspace_id + item.is_foreign,
            lease.run_id,
            lease.generation + item.is_stale,
            Reported(item.ops, max(place + item.known_off, 0), item.ends),
        )
        for lease, item, place in zip(leases, round_, places, strict=True)
    ]


def _comparable(answers: Sequence[EntryAnswer | Requeue]) -> list[Any]:
    """Answers without what is each run's own: its id, and the lease to the second."""
    assert all(isinstance(answer, EntryAnswer) for answer in answers)
    return [
        (
            answer.generation,
            answer.status,
            round(answer.lease_seconds) if isinstance(answer.lease_seconds, float) else None,
            answer.resolved,
            answer.retries,
            answer.abandoned,
            answer.error,
        )
        for answer in answers
        if isinstance(answer, EntryAnswer)
    ]


async def _written(world: World, leases: Sequence[Lease]) -> list[Any]:
    """All rows of these runs, without ids and instants that differ by nature."""
    found: list[Any] = []
    for lease in leases:
        found += [
            await world.rows(question, lease.run_id)
            for question in (
                "SELECT state, generation, engine_id, position, memo_bytes, attempt, interruptions, undelivered, mismatches, has_open, "
                "parked_for, round(extract(epoch FROM due_at - clock_timestamp())) AS lease FROM live_run WHERE run_id = $1",
                "SELECT step_id, position, kind, data, error, is_abandoned, event_id, attempt, seen, generation, planned_at, started_at, "
                "duration_seconds FROM step WHERE run_id = $1 ORDER BY position",
                "SELECT status, output, error, generation FROM run_end WHERE run_id = $1",
                "SELECT generation, engine_id, attempt, outcome, detail, leased_at IS NULL AS unleased FROM invocation WHERE run_id = $1",
                "SELECT count(*) AS taken FROM taken_event WHERE run_id = $1",
                "SELECT count(*) AS waits FROM wait WHERE run_id = $1",
                "SELECT count(*) AS retries FROM step_retry WHERE run_id = $1",
                "SELECT count(*) AS slots FROM slot WHERE run_id = $1",
            )
        ]
    return found


# What is plain -------------------------------------------------------------------------------------------------------


async def test_steps_and_the_end_of_a_run_take_one_statement(database: Database) -> None:
    world = await make_world(database)
    await world.start()
    lease = await world.claim_one()
    first = await plainly(world, world.report(lease, step("a"), step("b")))
    assert [entry.position for entry in first[lease.run_id].resolved] == [1, 2]
    last = await plainly(world, world.report(lease, step("c"), DONE, known=2, ends=True))
    assert last[lease.run_id].status == "ok"
    assert [step_id for step_id, _, _ in await world.memo(lease.run_id)] == ["a", "b", "c"]
    assert await world.state(lease.run_id) == "completed"
    await world.assert_sound()


async def test_a_run_with_something_open_is_left_to_the_general_way(database: Database) -> None:
    world = await make_world(database)
    await world.start()
    lease = await world.claim_one()
    await world.say(lease, wait("w", "approved"))
    assert await plainly(world, world.report(lease, step("a"))) == {}
    [answer] = await flush(world, world.report(lease, step("a")))
    assert isinstance(answer, EntryAnswer) and answer.status == "ok"
    await world.assert_sound()


async def test_the_end_of_a_run_that_holds_a_slot_is_left_to_the_general_way(database: Database) -> None:
    world = await make_world(database, function("f", "go", limit=1))
    await world.start()
    waiting = await world.start()
    lease = await world.claim_one()
    assert lease.run_id in await plainly(world, world.report(lease, step("a")))
    assert await plainly(world, world.report(lease, DONE, known=1, ends=True)) == {}
    await flush(world, world.report(lease, DONE, known=1, ends=True))
    assert [other.run_id for other in await world.claim()] == [waiting]
    await world.assert_sound()


async def test_a_wait_that_ends_makes_its_run_plain_again(database: Database) -> None:
    world = await make_world(database)
    await world.start()
    lease = await world.claim_one()
    await world.say(lease, Sleep("s", seconds=0.0))
    await database.transact(fire_timers)
    [answer] = await flush(world, world.report(lease, step("a"), known=0))
    assert isinstance(answer, EntryAnswer) and [entry.id for entry in answer.resolved] == ["s", "a"]
    assert lease.run_id in await plainly(world, world.report(lease, step("b"), known=2))
    await world.assert_sound()


# Against other transactions ------------------------------------------------------------------------------------------


async def test_a_run_that_another_transaction_holds_is_put_off_and_its_neighbour_is_not(database: Database) -> None:
    world = await make_world(database)
    held, free = [await world.start() for _ in range(2)]
    leases = {lease.run_id: lease for lease in await world.claim()}
    async with world.paused(_lock, held):
        reports = [world.report(leases[run_id], step("a")) for run_id in (held, free)]
        put_off, answered = await flush(world, *reports)
    assert isinstance(put_off, Requeue)
    assert isinstance(answered, EntryAnswer) and answered.status == "ok"
    assert await world.memo(held) == []
    [again] = await flush(world, reports[0])
    assert isinstance(again, EntryAnswer) and again.status == "ok"


async def test_a_lease_given_on_before_the_report_makes_it_stale(database: Database) -> None:
    world = await make_world(database)
    run_id = await world.start()
    lease = await world.claim_one()
    await world.rows("UPDATE live_run SET generation = 2 WHERE run_id = $1", run_id)
    for ops, ends in (((step("a"),), False), ((step("a"), DONE), True)):
        [answer] = await flush(world, world.report(lease, *ops, ends=ends))
        assert isinstance(answer, EntryAnswer) and answer.status == "stale"
    assert await world.memo(run_id) == []
    assert await world.state(run_id) == "leased"


async def test_a_cancelled_run_takes_no_plain_report(database: Database) -> None:
    world = await make_world(database)
    run_id = await world.start()
    lease = await world.claim_one()
    await database.transact(cancel_run, world.workspace_id, run_id)
    [answer] = await flush(world, world.report(lease, step("a")))
    assert isinstance(answer, EntryAnswer) and answer.status == "cancelled"
    [answer] = await flush(world, world.report(lease, step("a"), DONE, ends=True))
    assert isinstance(answer, EntryAnswer) and answer.status == "cancelled"
    assert await world.state(run_id) == "cancelled"
    assert await world.memo(run_id) == []
    await world.assert_sound()


CHANGES = {
    "its lease is given on": "UPDATE live_run SET generation = 2 WHERE run_id = $1",
    "it is cancelled": "UPDATE live_run SET state = 'cancelled' WHERE run_id = $1",
    "a wait of it ends": "UPDATE live_run SET position = 1 WHERE run_id = $1",
    "a wait of it is registered": "UPDATE live_run SET has_open = true WHERE run_id = $1",
    "it ends": "DELETE FROM live_run WHERE run_id = $1",
}


async def test_a_change_committed_while_the_statement_runs_is_seen_under_the_lock(database: Database) -> None:
    """The statement's snapshot is older than the change: only the look under the lock can know."""
    world = await make_world(database)
    for change in CHANGES.values():
        await _change_while_the_statement_stands(world, change)


async def _change_while_the_statement_stands(world: World, change: str) -> None:
    changed, bystander = [await world.start() for _ in range(2)]
    leases = {lease.run_id: lease for lease in await world.claim()}
    # The statement reads its runs in the order of the report. It stands at an advisory lock, asked for by a view of a row in front
    # of the one that changes.
    key = 4_711
    answers: list[dict[UUID, EntryAnswer]] = []
    reports = [world.report(leases[run_id], step("a")) for run_id in (bystander, changed)]

    async def report() -> None:
        answers.append(await plainly(world, *reports))

    await world.rows(
        "CREATE OR REPLACE FUNCTION stand(run uuid) RETURNS uuid LANGUAGE plpgsql VOLATILE AS "
        f"$$ BEGIN IF run = '{bystander}' THEN PERFORM pg_advisory_xact_lock({key}); END IF; RETURN run; END $$"
    )
    standing = copy(module.APPLY_PLAIN_STEPS)
    standing.text = standing.text.replace("r.run_id = u.reported_id", "r.run_id = stand(u.reported_id)")
    assert standing.text != module.APPLY_PLAIN_STEPS.text
    real, module.APPLY_PLAIN_STEPS = module.APPLY_PLAIN_STEPS, standing
    try:
        async with trio.open_nursery() as nursery:
            async with world.paused(_take_advisory_lock, key):
                nursery.start_soon(report)
                while not await world.rows(
                    "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND objid = $1 AND NOT granted", key
                ):
                    await trio.sleep(0.001)
                await world.rows(change, changed)
    finally:
        module.APPLY_PLAIN_STEPS = real
    assert set(answers[0]) == {bystander}, change
    assert await world.memo(changed) == [], change
    assert [step_id for step_id, _, _ in await world.memo(bystander)] == ["a"], change


async def _take_advisory_lock(conn: Connection, key: int) -> None:
    await conn._raw.execute("SELECT pg_advisory_xact_lock($1)", key)


async def _lock(conn: Connection, run_id: UUID) -> None:
    await conn._raw.execute("SELECT 1 FROM live_run WHERE run_id = $1 FOR UPDATE", run_id)


# The same message once more ------------------------------------------------------------------------------------------


async def test_a_message_repeated_after_a_commit_that_nobody_heard_of_is_answered_ok(database: Database) -> None:
    world = await make_world(database)
    await world.start()
    lease = await world.claim_one()
    for report in (world.report(lease, step("a")), world.report(lease, step("b"), DONE, known=1, ends=True)):
        [first] = await flush(world, report)
        [second] = await flush(world, report)
        assert isinstance(first, EntryAnswer) and isinstance(second, EntryAnswer)
        assert (first.status, second.status) == ("ok", "ok")
    assert [step_id for step_id, _, _ in await world.memo(lease.run_id)] == ["a", "b"]
    await world.assert_sound()


async def test_a_step_that_the_run_remembers_already_keeps_nobody_from_being_written(database: Database) -> None:
    world = await make_world(database)
    twice, other = [await world.start() for _ in range(2)]
    leases = {lease.run_id: lease for lease in await world.claim()}
    await world.say(leases[twice], step("a", 1))
    answers = await flush(world, world.report(leases[twice], step("a", 2), known=1), world.report(leases[other], step("a")))
    assert [answer.status for answer in answers if isinstance(answer, EntryAnswer)] == ["ok", "ok"]
    assert await world.memo(twice) == [("a", 1, "1")]
    assert len(await world.memo(other)) == 1
    await world.assert_sound()


async def test_the_second_report_of_a_run_in_a_group_is_applied_after_the_first(database: Database) -> None:
    world = await make_world(database)
    run_id = await world.start()
    lease = await world.claim_one()
    writer = make_report_writer(database, Hints(), LEASE_SECONDS)
    async with trio.open_nursery() as nursery:
        answers: list[EntryAnswer] = []

        async def send() -> None:
            answers.extend(
                await writer.submit_all(
                    [world.report(lease, step("a")), world.report(lease, step("b"), DONE, known=1, ends=True)]
                )
            )
            nursery.cancel_scope.cancel()

        nursery.start_soon(send)
        nursery.start_soon(writer.serve)
    assert [answer.status for answer in answers] == ["ok", "ok"]
    assert [step_id for step_id, _, _ in await world.memo(run_id)] == ["a", "b"]
    assert await world.state(run_id) == "completed"


async def test_the_end_of_a_plain_run_is_told_to_those_who_wait_for_it(database: Database) -> None:
    world = await make_world(database)
    run_id = await world.start()
    lease = await world.claim_one()
    hints = Hints()
    heard: list[Literal["end"]] = []

    async def wait_for_end() -> None:
        with trio.fail_after(60):
            with hints.watch_run_end(run_id) as ended:
                await ended.wait()
        heard.append("end")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_for_end)
        await trio.testing.wait_all_tasks_blocked()
        await write_reports(database, hints, [world.report(lease, DONE, ends=True)], LEASE_SECONDS)
    assert heard == ["end"]
