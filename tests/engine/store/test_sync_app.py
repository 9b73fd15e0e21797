"""What a manifest does to the rows of its workspace: all or nothing, once, and with the waiting runs in mind."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio_asyncio

from engine.store.audit import audit
from engine.store.database import Database
from engine.store.list_functions import FunctionEntry, list_functions
from engine.store.pay_promotions import pay_promotions
from engine.store.sql import Connection
from engine.store.sync_app import SyncRefused, sync_app
from protocol.manifest import Concurrency, FunctionConfig, Manifest, Trigger, Workspace
from tests.api_under_test import function
from tests.store_under_test import Store, open_store

SHOP = Workspace("shop", "acc")


@pytest.fixture
async def store(database: Database) -> Store:
    return await open_store(database, SHOP)


async def shown(store: Store) -> dict[str, FunctionEntry]:
    return {entry.function: entry for entry in await store.database.read(list_functions, store.workspace_id)}


async def count(database: Database, table_and_condition: str) -> int:
    async def ask(conn: Connection) -> int:
        found: int = await conn._raw.fetchval(f"SELECT count(*) FROM {table_and_condition}")
        return found

    return await database.read(ask)


async def test_the_same_manifest_again_writes_nothing(store: Store) -> None:
    first = await store.sync(function("a", limit=2, key="tenantId"))
    assert first.is_changed and first.functions == 1
    synced_at = await count(store.database, "app WHERE synced_at < now()")
    before = (await shown(store))["a"]
    again = await store.sync(function("a", limit=2, key="tenantId"))
    assert not again.is_changed and again.functions == 1
    assert (await shown(store))["a"] == before and synced_at == 1


async def test_a_changed_configuration_counts_its_version_and_replaces_triggers_and_limits(store: Store) -> None:
    await store.sync(function("a", "one", "two", limit=2, key="tenantId"), function("b"))
    await store.sync(
        FunctionConfig("a", [Trigger("three", "event.data.x == 1")], retries=7, concurrency=[Concurrency(5, "userId")]),
        function("b"),
    )
    entries = await shown(store)
    assert (entries["a"].config_version, entries["b"].config_version) == (2, 1)
    assert [(trigger.event, trigger.condition) for trigger in entries["a"].triggers] == [("three", "event.data.x == 1")]
    assert [(limit.limit, limit.key) for limit in entries["a"].limits] == [(5, "userId")]
    assert b'"retries":7' in bytes(entries["a"].config)


async def test_a_new_address_alone_is_a_change_and_leaves_the_functions(store: Store) -> None:
    await store.sync(function("a"))
    assert (await store.sync(function("a"), url="http://127.0.0.1:10/")).is_changed
    assert (await shown(store))["a"].config_version == 1


async def test_a_removed_function_is_held_and_comes_back_with_its_runs(store: Store) -> None:
    await store.sync(function("a"), function("b"))
    run_id = await store.send("b.asked")
    await store.sync(function("a"), deployment="2")
    entry = (await shown(store))["b"]
    assert entry.removed_at is not None and entry.hold is not None
    assert (entry.hold.cause, entry.hold.until) == ("function_removed", None)
    assert await store.claim() == {}
    back = await store.sync(function("a"), function("b"), deployment="3")
    assert back.has_due_runs
    entry = (await shown(store))["b"]
    assert entry.removed_at is None and entry.hold is None and [trigger.event for trigger in entry.triggers] == ["b.asked"]
    assert run_id in await store.claim()


async def test_events_do_not_start_a_removed_function(store: Store) -> None:
    await store.sync(function("a", "x"), function("b", "x"))
    await store.sync(function("a", "x"), deployment="2")
    await store.send("x")
    assert await count(store.database, "run") == 1


@pytest.mark.parametrize("change", [function("a", limit=2, key="t"), function("a"), function("a", limit=5, key="other")])
async def test_a_raised_or_lifted_limit_lets_waiting_runs_go_on(store: Store, change: FunctionConfig) -> None:
    await store.sync(function("a", limit=1, key="t"))
    for _ in range(3):
        await store.send("a.asked", '{"t":"x"}')
    assert len(await store.claim()) == 1
    await store.claim()
    assert await count(store.database, "live_run WHERE state = 'parked'") == 2
    synced = await store.sync(change)
    assert synced.owes_promotion
    assert await store.database.read(audit) == []
    await store.database.transact(pay_promotions)
    assert len(await store.claim()) >= 1
    assert await store.database.read(audit) == []


async def test_a_lowered_limit_owes_nothing(store: Store) -> None:
    await store.sync(function("a", limit=2))
    for _ in range(3):
        await store.send("a.asked")
    await store.claim()
    assert not (await store.sync(function("a", limit=1))).owes_promotion


async def test_a_limit_that_comes_back_is_the_old_one_with_its_keys(store: Store) -> None:
    await store.sync(function("a", limit=1, key="t"))
    await store.sync(function("a"), deployment="2")
    await store.sync(function("a", limit=4, key="t"), deployment="3")
    assert await count(store.database, "concurrency_limit WHERE in_force AND slots = 4") == 1
    assert await count(store.database, "concurrency_limit") == 1


REFUSED: list[tuple[str, str, list[FunctionConfig], dict[str, Any]]] = [
    ("invalid_expression", "/functions/1/triggers/0/if", [function("ok"), FunctionConfig("a", [Trigger("x", "event.data.x ==")])], {}),
    ("invalid_expression", "/functions/0/concurrency/0/key", [function("a", limit=1, key="foo(")], {}),
    ("invalid_expression", "/functions/0/concurrency/0/key", [function("a", limit=1, key="  ")], {}),
    ("invalid_expression", "/functions/0/triggers/0/if", [FunctionConfig("a", [Trigger("x", "a" * 2_000)])], {}),
    ("duplicate_limit", "/functions/0/concurrency/1", [FunctionConfig("a", [Trigger("x")], concurrency=[Concurrency(1)] * 2)], {}),
    ("no_common_protocol", "/protocol", [function("a")], {"protocol": [2, 3]}),
]  # fmt: skip


@pytest.mark.parametrize(("code", "place", "functions", "rest"), REFUSED)
async def test_a_manifest_that_can_not_be_used_changes_nothing_and_says_where(
    store: Store, code: str, place: str, functions: list[FunctionConfig], rest: dict[str, Any]
) -> None:
    await store.sync(function("before"))
    manifest = Manifest(SHOP, rest.get("protocol", [1]), functions, deployment="2")
    with pytest.raises(SyncRefused) as caught:
        await store.database.transact(sync_app, store.workspace_id, "http://127.0.0.1:9/", manifest)
    assert (caught.value.code, caught.value.place) == (code, place)
    assert caught.value.message and caught.value.hint
    assert list(await shown(store)) == ["before"]


async def test_two_syncs_at_once_leave_one_of_both_whole(store: Store) -> None:
    one = [function(f"one-{n}", "x", limit=1) for n in range(20)]
    two = [function(f"two-{n}", "x", limit=1) for n in range(20)]
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(lambda: store.sync(*one))
            nursery.start_soon(lambda: store.sync(*two))
    present = {name.split("-")[0] for name, entry in (await shown(store)).items() if entry.removed_at is None}
    assert len(present) == 1
    assert await count(store.database, "trigger") == 20
    assert await store.database.read(audit) == []


async def test_a_workspace_sees_nothing_of_anothers_sync(store: Store) -> None:
    other = await open_store(store.database, Workspace("shop", "prod"))
    await store.sync(function("a"))
    assert await shown(other) == {}
    await other.sync(function("a"), function("b"))
    assert list(await shown(store)) == ["a"]


async def test_a_limit_raised_while_a_run_parks_leaves_no_forgotten_run(store: Store) -> None:
    """Claims that park and a sync that raises meet again and again; no run may stay parked at a key with free slots."""
    await store.sync(function("a", limit=1, key="t"))
    for round_number in range(2, 14):
        for _ in range(3):
            await store.send("a.asked", '{"t":"x"}')

        async def claim_twice() -> None:
            await store.claim()
            await store.claim()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(claim_twice)
            nursery.start_soon(lambda n=round_number: store.sync(function("a", limit=n, key="t")))
        assert [finding for finding in await store.database.read(audit) if finding.check == "promotion_forgotten"] == []


async def test_a_claim_that_waited_for_the_sync_sees_the_raised_limit(store: Store) -> None:
    """The claim's statement began before the sync committed; what it reads of the limit must not be older than the lock it got."""
    await store.sync(function("a", limit=1, key="t"))
    await store.send("a.asked", '{"t":"x"}')
    await store.claim()
    await store.send("a.asked", '{"t":"x"}')
    synced, may_commit = trio.Event(), trio.Event()

    async def slow_sync(conn: Connection) -> None:
        manifest = Manifest(SHOP, [1], [function("a", limit=9, key="t")], deployment="2")
        await sync_app(conn, store.workspace_id, "http://127.0.0.1:9/", manifest)
        synced.set()
        await trio_asyncio.trio_as_aio(may_commit.wait)()

    async def waits_for_a_lock(conn: Connection) -> bool:
        found: bool = await conn._raw.fetchval("SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock')")
        return found

    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.database.transact, slow_sync)
        await synced.wait()
        nursery.start_soon(store.claim)
        with trio.fail_after(5):
            while not await store.database.read(waits_for_a_lock):
                await trio.sleep(0.01)
        may_commit.set()
    await store.database.transact(pay_promotions)
    assert await store.database.read(audit) == []
