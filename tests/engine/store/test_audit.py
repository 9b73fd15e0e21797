"""Every check of the audit finds the fault that it is for, and nothing in a healthy database."""

from __future__ import annotations

import pytest

from engine.core.outcome import Reported
from engine.store.apply_outcomes import RunReport, apply_outcomes
from engine.store.audit import CHECKS, audit
from engine.store.cancel_run import cancel_run
from engine.store.database import Database
from engine.store.sql import Connection
from protocol.manifest import Workspace
from protocol.ops import Sleep, WaitForEvent
from tests.api_under_test import function
from tests.store_under_test import Store, open_store, step


async def fill(database: Database) -> Store:
    """A database with a run in every state, waits, retries and full limits; nothing of it is wrong."""
    store = await open_store(database, Workspace("shop", "acc"))
    await store.sync(function("limited", limit=1, key="tenantId"), function("plain"), function("gone"))
    for _ in range(3):
        await store.send("limited.asked", '{"tenantId":"a"}')
    waiting, sleeping, leased, ended, lame = [await store.send("plain.asked") for _ in range(5)]
    held = await store.send("gone.asked")
    leases = await store.claim()
    for run_id, ops in (
        (waiting, [step("a"), WaitForEvent("w", "user.approved", 100.0)]),
        (sleeping, [Sleep("s", seconds=100.0)]),
    ):
        await database.transact(apply_outcomes, [RunReport(store.workspace_id, run_id, 1, Reported(tuple(ops), 9, True))], 30.0)
    assert {leased, lame, held} <= leases.keys()
    for run_id in (ended, lame):
        await database.transact(cancel_run, store.workspace_id, run_id)
    await store.sync(function("limited", limit=1, key="tenantId"), function("plain"), deployment="2")
    return store


async def test_a_healthy_database_has_no_findings(database: Database) -> None:
    await fill(database)
    states = await database.read(_states)
    assert {"parked", "waiting", "leased", "cancelled"} <= states
    assert await database.read(audit) == []


async def _states(conn: Connection) -> set[str]:
    rows = await conn._raw.fetch("SELECT DISTINCT state FROM live_run")
    return {row["state"] for row in rows}


ANY_RUN = "(SELECT run_id FROM live_run WHERE state = 'leased' LIMIT 1)"
BREAKS = {
    "run_without_state": f"DELETE FROM live_run WHERE run_id = {ANY_RUN}",
    "run_in_two_states": f"INSERT INTO run_end (run_id, status, generation) VALUES ({ANY_RUN}, 'completed', 1)",
    "cancelled_without_end": f"UPDATE live_run SET state = 'cancelled' WHERE run_id = {ANY_RUN}",
    "live_run_unknown": f"DELETE FROM run WHERE run_id = {ANY_RUN}",
    "leased_without_engine": f"UPDATE live_run SET engine_id = NULL WHERE run_id = {ANY_RUN}",
    "lease_not_reclaimed": f"UPDATE live_run SET due_at = now() - interval '61 s' WHERE run_id = {ANY_RUN}",
    "delay_overdue": f"UPDATE live_run SET state = 'delayed', due_at = now() - interval '61 s' WHERE run_id = {ANY_RUN}",
    "waiting_for_nothing": "DELETE FROM wait",
    "wait_of_no_run": "DELETE FROM live_run WHERE state = 'waiting'",
    "wait_overdue": "UPDATE wait SET deadline_at = now() - interval '61 s' WHERE kind = 'sleep'",
    "wait_without_shape": "UPDATE wait SET shape_id = NULL WHERE kind = 'wait_for_event'",
    "wait_pending_too_long": "UPDATE wait SET is_pending = true, registered_at = now() - interval '61 s' WHERE kind = 'wait_for_event'",
    "wait_pending_on_ready_shape": "UPDATE event_shape SET is_ready = true; UPDATE wait SET is_pending = true WHERE kind <> 'sleep'",
    "retry_of_no_run": "INSERT INTO step_retry SELECT run_id, 'r', 2, now() FROM run_end LIMIT 1",
    "open_but_not_marked": "UPDATE live_run SET has_open = false WHERE state = 'waiting'",
    "taken_event_of_no_run": "INSERT INTO taken_event VALUES (gen_random_uuid(), gen_random_uuid())",
    "positions_not_dense": "UPDATE step SET position = 5",
    "settled_and_open": "INSERT INTO step_retry SELECT run_id, step_id, 2, now() FROM step",
    "step_of_no_run": "UPDATE step SET run_id = gen_random_uuid()",
    "event_not_decided": "DELETE FROM event_decision WHERE run_id IN (SELECT run_id FROM run_end)",
    "decision_without_run": "UPDATE event_decision SET run_id = gen_random_uuid() WHERE event_id = (SELECT event_id FROM event LIMIT 1)",
    "slot_without_holder": "UPDATE slot SET generation = 7",
    "held_not_counted": "UPDATE limit_key SET held = held + 1",
    "limit_exceeded": "UPDATE concurrency_limit SET slots = 0; UPDATE app SET synced_at = now() - interval '31 s'",
    "promotion_forgotten": "UPDATE concurrency_limit SET slots = 2",
    "parked_at_no_key": "UPDATE live_run SET parked_key_id = 99 WHERE state = 'parked'",
    "removed_without_hold": "DELETE FROM lane_hold",
    "held_without_removal": "UPDATE function SET removed_at = NULL",
}  # fmt: skip


def test_every_check_has_a_fault_that_it_must_find() -> None:
    assert {check.name.removeprefix("audit_") for check in CHECKS} == set(BREAKS)


@pytest.mark.parametrize("name", BREAKS)
async def test_the_check_finds_its_fault(database: Database, name: str) -> None:
    await fill(database)

    async def break_it(conn: Connection) -> None:
        await conn.execute_script(BREAKS[name])

    await database.transact(break_it)
    found = [finding for finding in await database.read(audit) if finding.check == name]
    assert found and found[0].objects and found[0].sentence.endswith(".")


async def test_a_lowered_limit_is_no_finding_while_its_holders_go_on(database: Database) -> None:
    store = await open_store(database, Workspace("shop", "acc"))
    await store.sync(function("limited", limit=3))
    for _ in range(3):
        await store.send("limited.asked")
    await store.claim()
    await store.sync(function("limited", limit=1), deployment="2")
    assert await database.read(audit) == []
