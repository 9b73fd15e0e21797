"""What a claim hands over: the memo with large values by reference where the app can fetch them, and what is open."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import UNSET, Raw

from engine.core.outcome import HandedBack
from engine.store.app_offer import AppOffer
from engine.store.claim_runs import claim_runs
from engine.store.database import Database
from engine.store.read_invocations import CALL_MARGIN_BYTES, Handover
from engine.store.sync_app import sync_app
from protocol.calls import MemoEntry
from protocol.limits import BODY_BYTES_MAX, REF_BYTES_MIN
from protocol.manifest import Batch, Capabilities, Manifest, Workspace
from protocol.ops import Step
from tests.engine.store.world import LEASE_SECONDS, World, function, make_world, step, step_error, wait

MAX_BODY = 1 << 20
REFS = Capabilities(checkpoint=True, batch=Batch(50), refs=True, alive=True)


async def sync_with(world: World, capabilities: Capabilities, max_body: int = BODY_BYTES_MAX) -> None:
    manifest = Manifest(Workspace("shop", "dev"), [1], [function("f", "go")], capabilities=capabilities, max_body=max_body)
    await world.database.transact(sync_app, world.workspace_id, "http://127.0.0.1:1/", manifest)


async def handed_over_again(world: World, *ops: Step) -> Handover:
    """The handover of a run that remembers `ops`."""
    await world.start()
    lease = await world.claim_one()
    assert (await world.say(lease, *ops)).status == "ok"
    await world.outcome(lease, HandedBack())
    [handover] = (await world.claimed()).handovers
    return handover


def large(step_id: str, data_bytes: int) -> Step:
    return step(step_id, "x" * (data_bytes - 2))


def refs_of(steps: Sequence[MemoEntry]) -> list[str]:
    return [entry.id for entry in steps if entry.ref is not UNSET]


async def test_the_offer_of_an_app_is_what_its_manifest_says(database: Database) -> None:
    world = await make_world(database)
    await world.start()
    assert (await world.claimed()).handovers[0].offer == AppOffer("http://127.0.0.1:1/", 1, BODY_BYTES_MAX, False, False)
    await sync_with(world, REFS, MAX_BODY)
    await world.start()
    assert (await world.claimed()).handovers[0].offer == AppOffer("http://127.0.0.1:1/", 50, MAX_BODY, True, True)


async def test_an_app_that_was_never_synced_has_no_offer(database: Database) -> None:
    world = await make_world(database)
    await world.start()
    await world.rows("DELETE FROM app RETURNING 1")
    await world.rows("UPDATE workspace SET sync_version = sync_version + 1 RETURNING 1")
    assert (await world.claimed()).handovers[0].offer is None


async def test_large_values_travel_by_reference_to_apps_that_fetch_them(database: Database) -> None:
    world = await make_world(database)
    await sync_with(world, REFS)
    ops = [large("under", REF_BYTES_MIN - 1), large("at", REF_BYTES_MIN), step("small", {"a": 1})]
    handover = await handed_over_again(world, *ops)
    under, at, small = handover.invocation.steps
    assert refs_of(handover.invocation.steps) == ["at"]
    assert (at.ref, at.bytes, at.data) == (f"m:{handover.lease.run_id}:2", REF_BYTES_MIN, UNSET)
    assert under.data == ops[0].data and small.data == Raw(b'{"a":1}')
    assert REF_BYTES_MIN < handover.size_bytes < REF_BYTES_MIN + 2_000


async def test_an_app_without_references_gets_every_value(database: Database) -> None:
    world = await make_world(database)
    ops = [large("a", REF_BYTES_MIN * 4), large("b", REF_BYTES_MIN)]
    handover = await handed_over_again(world, *ops)
    assert [entry.data for entry in handover.invocation.steps] == [op.data for op in ops]
    assert handover.size_bytes > REF_BYTES_MIN * 5


async def test_the_largest_values_stay_behind_until_the_call_fits(database: Database) -> None:
    world = await make_world(database)
    await sync_with(world, REFS, MAX_BODY)
    ops = [large(f"s{n}", 60_000 if n % 2 else 40_000) for n in range(24)]
    handover = await handed_over_again(world, *ops)
    refs = refs_of(handover.invocation.steps)
    assert refs and all(int(step_id[1:]) % 2 for step_id in refs)
    assert MAX_BODY - CALL_MARGIN_BYTES - 60_000 < handover.size_bytes <= MAX_BODY - CALL_MARGIN_BYTES
    await world.assert_sound()


async def test_what_is_open_in_a_run_is_handed_over(database: Database) -> None:
    world = await make_world(database)
    await world.start()
    lease = await world.claim_one()
    await world.say(lease, step("a"), step_error("b"), wait("w", "approved"))
    await world.outcome(lease, HandedBack())
    [handover] = (await world.claimed()).handovers
    invocation = handover.invocation
    assert [entry.id for entry in invocation.steps] == ["a"]
    assert [(entry.id, entry.kind) for entry in invocation.waiting] == [("w", "wait_for_event")]
    assert [(entry.id, entry.attempt) for entry in invocation.retries] == [("b", 2)]
    assert (handover.lease.generation, handover.lease.position, handover.app, handover.env) == (2, 1, "shop", "dev")


async def test_runs_with_limits_and_without_are_handed_over_in_one_claim(database: Database) -> None:
    world = await make_world(database, function("f", "go"), function("g", "go", limit=1))
    await world.append(world.event("go", 1), world.event("go", 2))
    claimed = await world.claimed()
    assert claimed.found == 4 and [handover.lease for handover in claimed.handovers] == list(claimed.leases)
    assert sorted(handover.invocation.function for handover in claimed.handovers) == ["f", "f", "g"]
    await world.assert_sound()


async def test_lanes_have_their_turns_in_their_order_although_some_workspaces_are_full(database: Database) -> None:
    world = await make_world(database, *(function(f"f{n:03}", f"go{n}") for n in range(100)))
    await world.rows("ANALYZE function")
    await world.append(*(world.event(f"go{n}") for n in range(100)))
    [full] = await world.rows("INSERT INTO workspace (app, env) VALUES ('full', 'dev') RETURNING workspace_id")
    lanes: list[int] = []
    after_lane = 0
    for _ in range(4):
        claimed = await database.transact(claim_runs, world.engine_id, 30, LEASE_SECONDS, after_lane, [full["workspace_id"]])
        after_lane = claimed.last_lane
        lanes += sorted({lease.function_id for lease in claimed.leases})
    assert len(lanes) == 100 and lanes == sorted(lanes)
