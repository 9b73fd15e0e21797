"""What people read: lists in pages, single runs with their times, events with decisions, and why a run does not run."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import msgspec
import pytest

from engine.store.append_events import NewEvent, append_events
from engine.store.cancel_run import cancel_run
from engine.store.cursor import CursorRefused
from engine.store.database import Database
from engine.store.explain_run import explain_run
from engine.store.list_events import list_events
from engine.store.list_runs import RunFilter, list_runs
from engine.store.prune_expired import prune_expired
from engine.store.read_event import read_event
from engine.store.read_run import RunDetail, read_run
from engine.store.sql import Connection
from engine.store.step_times import StepSpan, split_times
from protocol.manifest import FunctionConfig, Trigger, Workspace
from protocol.ops import Backoff, Complete, Sleep, WaitForEvent
from tests.api_under_test import function
from tests.store_under_test import Store, open_store, step, step_error

SHOP = Workspace("shop", "acc")
SLOW = Backoff(initial_seconds=50.0, jitter=False)


@pytest.fixture
async def store(database: Database) -> Store:
    return await open_store(database, SHOP)


async def detail(store: Store, run_id: UUID) -> RunDetail:
    found = await store.database.read(read_run, store.workspace_id, run_id)
    assert found is not None
    return found


async def script(store: Store, text: str) -> None:
    async def work(conn: Connection) -> None:
        await conn.execute_script(text)

    await store.database.transact(work)


# Lists --------------------------------------------------------------------------------------------------------------


async def test_pages_of_runs_go_through_all_once_also_while_new_ones_come(store: Store) -> None:
    await store.sync(function("a"))
    sent = [await store.send("a.asked") for _ in range(7)]
    seen: list[UUID] = []
    cursor: str | None = None
    while True:
        page = await store.database.read(list_runs, store.workspace_id, RunFilter(), cursor, runs_max=3)
        seen += [run.run_id for run in page.runs]
        await store.send("a.asked")
        if page.cursor is None:
            break
        cursor = page.cursor
    assert len(seen) == len(set(seen)) and set(sent) == set(seen)
    assert seen == sorted(seen, reverse=True)


async def test_runs_are_found_by_status_function_and_event(store: Store) -> None:
    await store.sync(function("a"), function("b", "other"))
    waiting, running, queued = [await store.send("a.asked") for _ in range(3)]
    await store.claim()
    await store.report(waiting, Sleep("s", seconds=100.0), ends=True)
    await store.send("other")

    async def ids(**wanted: str) -> set[UUID]:
        page = await store.database.read(list_runs, store.workspace_id, RunFilter(**wanted), None)  # type: ignore[arg-type]
        return {run.run_id for run in page.runs}

    assert await ids(status="waiting") == {waiting}
    assert await ids(status="running") == {running, queued}
    assert len(await ids(status="queued", function="b", event="other")) == 1
    assert await ids(status="queued", function="a") == set()
    assert await ids(function="nothing") == set()
    await store.database.transact(cancel_run, store.workspace_id, running)
    assert await ids(status="cancelled") == {running}
    assert await ids(status="running") == {queued}


async def test_a_cursor_is_good_for_its_own_list_only(store: Store) -> None:
    other = await open_store(store.database, Workspace("shop", "prod"))
    await store.sync(function("a"))
    for _ in range(3):
        await store.send("a.asked")
    page = await store.database.read(list_runs, store.workspace_id, RunFilter(), None, runs_max=1)
    assert page.cursor is not None
    for workspace_id, run_filter, cursor in (
        (other.workspace_id, RunFilter(), page.cursor),
        (store.workspace_id, RunFilter(status="queued"), page.cursor),
        (store.workspace_id, RunFilter(), page.cursor[:-2]),
        (store.workspace_id, RunFilter(), "x"),
        (store.workspace_id, RunFilter(), "é" * 30),
    ):
        with pytest.raises(CursorRefused):
            await store.database.read(list_runs, workspace_id, run_filter, cursor)
    events = await store.database.read(list_events, store.workspace_id, None, None, events_max=1)
    assert events.cursor is not None
    with pytest.raises(CursorRefused):
        await store.database.read(list_runs, store.workspace_id, RunFilter(), events.cursor)


async def test_events_of_all_names_are_merged_in_their_order(store: Store) -> None:
    await store.sync(function("a", *(f"name-{n}" for n in range(4))))
    for index in range(12):
        await store.send(f"name-{index % 4}", sent_id=f"e{index:02}")
    seen: list[str] = []
    cursor: str | None = None
    while True:
        page = await store.database.read(list_events, store.workspace_id, None, cursor, events_max=5)
        seen += [event.id for event in page.events]
        if (cursor := page.cursor) is None:
            break
    assert seen == [f"e{index:02}" for index in reversed(range(12))]
    named = await store.database.read(list_events, store.workspace_id, "name-1", None)
    assert [event.id for event in named.events] == ["e09", "e05", "e01"]
    assert {(event.runs, event.skipped) for event in named.events} == {(1, 0)}


async def test_an_event_tells_what_each_function_did_with_it(store: Store) -> None:
    await store.sync(function("a", "x"), FunctionConfig("b", [Trigger("x", "event.data.n > 5")]))
    event = NewEvent(store.workspace_id, uuid4(), "x", '{"n":1.50}', "sent-1")
    await store.database.transact(append_events, [event])
    for wanted in ("sent-1", str(event.event_id)):
        found = await store.database.read(read_event, store.workspace_id, wanted)
        assert found is not None and bytes(found.data) == b'{"n":1.50}'
        assert [(each.function, each.decision) for each in found.decisions] == [("a", "run"), ("b", "skipped")]
        assert "event.data.n > 5" in (found.decisions[1].reason or "")
    other = await open_store(store.database, Workspace("shop", "prod"))
    assert await store.database.read(read_event, other.workspace_id, str(event.event_id)) is None
    assert await store.database.read(read_event, store.workspace_id, "nothing") is None


async def test_expired_event_ids_are_pruned_in_pages_and_others_stay(store: Store) -> None:
    await store.sync(function("a"))
    for index in range(5):
        await store.send("a.asked", sent_id=f"e{index}")
    await script(store, "UPDATE event_dedup SET expires_at = now() - interval '1 s' WHERE external_id <> 'e4'")
    assert [await store.database.transact(prune_expired, 3) for _ in range(3)] == [3, 1, 0]


# One run ------------------------------------------------------------------------------------------------------------


async def test_a_run_shows_its_steps_waits_and_retries_and_its_times_add_up(store: Store) -> None:
    await store.sync(function("a", backoff=SLOW))
    run_id = await store.send("a.asked", '{"x": 1.50}')
    await store.claim()
    await store.report(run_id, step("load", b'{"n": 1}', duration_seconds=0.001), step_error("mail"))
    await store.report(run_id, WaitForEvent("approve", "user.approved", 60.0, match={"id": 1}), ends=True)
    run = await detail(store, run_id)
    assert run.status == "waiting" and run.event is not None and bytes(run.event.data) == b'{"x": 1.50}'
    load, approve, mail = run.steps
    assert (load.status, load.position, load.data and bytes(load.data)) == ("completed", 1, b'{"n": 1}')
    assert load.times is not None and load.times.from_at == run.created_at and load.times.app_seconds == 0.001
    assert (approve.status, approve.event, approve.match and bytes(approve.match)) == ("waiting", "user.approved", b'{"id":1}')
    assert (mail.status, mail.attempt, len(mail.failed_attempts)) == ("retrying", 2, 1)
    assert b"Oops" in bytes(mail.failed_attempts[0].error)
    assert [(each.generation, each.outcome) for each in run.invocations] == [(1, "parked")]
    times = [load.times, run.tail]
    total = sum(each.app_seconds + each.waited_seconds + each.durable_seconds for each in times)
    assert total == pytest.approx((run.read_at - run.created_at).total_seconds(), abs=1e-3)
    msgspec.json.encode(run)


async def test_an_ended_run_has_its_output_and_no_reason_why(store: Store) -> None:
    await store.sync(function("a"))
    run_id = await store.send("a.asked")
    await store.claim()
    running = await detail(store, run_id)
    assert (running.status, running.why) == ("running", None)
    assert [(each.generation, each.ended_at) for each in running.invocations] == [(1, None)]
    await store.report(run_id, Complete(msgspec.Raw(b'{"done": true}')), ends=True)
    run = await detail(store, run_id)
    assert (run.status, run.output and bytes(run.output), run.why) == ("completed", b'{"done": true}', None)
    assert run.ended_at is not None and run.started_at is not None
    other = await open_store(store.database, Workspace("shop", "prod"))
    assert await store.database.read(read_run, other.workspace_id, run_id) is None


T0 = datetime(2026, 1, 31, 9, 0, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("span", "expected"),
    [
        (StepSpan("step", at(10), tries=((at(7), 2.0),)), (2.0, 0.0, 8.0)),
        (StepSpan("step", at(10), tries=((at(-50), 55.0),)), (10.0, 0.0, 0.0)),
        (StepSpan("step", at(10), tries=((at(1), 1.0), (at(6), 2.0))), (3.0, 4.0, 3.0)),
        (StepSpan("sleep", at(10), planned_at=at(1)), (0.0, 9.0, 1.0)),
        (StepSpan("sleep", at(10), planned_at=at(-5)), (0.0, 10.0, 0.0)),
        (StepSpan("wait_for_event", at(10)), (0.0, 0.0, 10.0)),
        (StepSpan("send_events", at(10)), (0.0, 0.0, 10.0)),
        (StepSpan("step", at(-1), tries=((at(-2), 1.0),)), (0.0, 0.0, 0.0)),
    ],
)
def test_the_time_of_a_step_is_split_among_app_wait_and_durable(span: StepSpan, expected: tuple[float, float, float]) -> None:
    [times], tail = split_times(T0, [span], at(12))
    assert (times.app_seconds, times.waited_seconds, times.durable_seconds) == pytest.approx(expected)
    assert tail.durable_seconds == pytest.approx(2.0 if span.committed_at > T0 else 12.0)


# Why a run does not run ---------------------------------------------------------------------------------------------


async def why(store: Store, run_id: UUID) -> str:
    sentence = await store.database.read(explain_run, run_id)
    assert sentence is not None and sentence.endswith(".")
    return sentence


async def test_why_a_run_is_due_and_not_taken(store: Store) -> None:
    await store.sync(function("a"))
    first, second = await store.send("a.asked"), await store.send("a.asked")
    assert "number 1 in the lane of a; but no engine is running" in await why(store, first)
    await script(store, "INSERT INTO engine (engine_id, name, state) VALUES (gen_random_uuid(), 'e', 'running')")
    sentence = await why(store, second)
    assert "number 2 in the lane of a." in sentence


async def test_why_a_run_is_held(store: Store) -> None:
    await store.sync(function("a"), function("b"))
    run_id = await store.send("b.asked")
    await store.sync(function("a"), deployment="2")
    assert "the app no longer has the function b" in await why(store, run_id)
    await store.sync(function("a"), function("b"), deployment="3")
    hold = "SELECT function_id, now() + interval '20 s', 'app_unreachable', 'connection refused', 1 FROM function"
    await script(store, f"INSERT INTO lane_hold {hold}")
    sentence = await why(store, run_id)
    assert "the app can not be reached: connection refused; tried again in" in sentence


async def test_why_a_run_waits_for_a_slot_and_who_has_it(store: Store) -> None:
    await store.sync(function("a", limit=1, key="tenantId"))
    holder, second, third = [await store.send("a.asked", '{"tenantId":"acme"}') for _ in range(3)]
    await store.claim()
    await store.claim()
    sentence = await why(store, third)
    assert f'key tenantId = "acme" is full: 1 of 1 slot held by {holder}; the run is number 2 in line' in sentence
    assert "number 1 in line" in await why(store, second)


async def test_why_a_run_waits_for_a_time_or_an_event(store: Store) -> None:
    await store.sync(function("a", backoff=SLOW))
    asleep, asking, failing = [await store.send("a.asked") for _ in range(3)]
    await store.claim()
    await store.report(asleep, Sleep("cooldown", seconds=100.0), ends=True)
    await store.report(asking, WaitForEvent("approve", "user.approved", 60.0), ends=True)
    await store.report(failing, step_error("charge"), ends=True)
    assert "cooldown sleeps until " in await why(store, asleep)
    assert "approve waits for the event user.approved until " in await why(store, asking)
    sentence = await why(store, failing)
    assert "A failed step is tried again in " in sentence and "charge (attempt 2)" in sentence


async def test_why_a_run_is_quarantined(store: Store) -> None:
    await store.sync(function("a"))
    run_id = await store.send("a.asked")
    await script(store, "UPDATE live_run SET state = 'parked', parked_for = 'quarantine', interruptions = 11")
    assert "Quarantined after 11 broken invocations" in await why(store, run_id)
