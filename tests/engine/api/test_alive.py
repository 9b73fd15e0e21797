"""The poll of an app process: what it is answered, when, and whose leases it can touch."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import pytest
import trio
import trio.testing

from engine.api import alive as alive_module
from engine.api import wait_result as wait_result_module
from engine.store.audit import audit
from engine.store.cancel_run import cancel_run
from engine.store.claim_runs import Lease
from engine.store.database import Database
from engine.store.fire_timers import fire_timers
from engine.store.sql import Connection
from protocol.limits import REF_BYTES_MIN
from tests.api_under_test import OTHER, SHOP, Api, Reply, as_json, function, step_op


def asked(lease: Lease, known: int = 0, open_seconds: float = 0.0) -> dict[str, Any]:
    return {"run_id": str(lease.run_id), "generation": lease.generation, "known": known, "open_seconds": open_seconds}


async def poll(api: Api, *runs: dict[str, Any], wait_seconds: float = 0.0, process: str = "p1", **rest: Any) -> Reply:
    workspace = rest.pop("workspace", SHOP)
    message = {
        "type": "alive",
        "workspace": as_json(workspace),
        "process": process,
        "wait_seconds": wait_seconds,
        "runs": list(runs),
    }
    return await api.signed("POST", "/v1/alive", message, workspace, **rest)


async def answered(api: Api, *runs: dict[str, Any], **rest: Any) -> list[dict[str, Any]]:
    reply = await poll(api, *runs, **rest)
    assert reply.status == 200, reply.json
    assert reply.json["type"] == "alive"
    found: list[dict[str, Any]] = reply.json["runs"]
    return found


@asynccontextmanager
async def open_poll(api: Api, *runs: dict[str, Any], **rest: Any):  # type: ignore[no-untyped-def]
    """A poll that stands open while the block runs; at its end the block's list has the answer, which must come long before 20 s."""
    answers: list[list[dict[str, Any]]] = []
    before = len(api.renewed)

    async def ask() -> None:
        answers.append(await answered(api, *runs, wait_seconds=20, **rest))

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            while len(api.renewed) == before:
                await trio.sleep(0.001)
            yield answers


async def leased(api: Api, lease_seconds: float = 30.0) -> Lease:
    await api.sync(function("f", "go"))
    return await api.lease(await api.send("go"), lease_seconds)


async def lease_left(api: Api, run_id: UUID) -> float:
    async def ask(conn: Connection) -> float:
        text = "SELECT extract(epoch FROM due_at - clock_timestamp())::float8 FROM live_run WHERE run_id = $1"
        return float(await conn._raw.fetchval(text, run_id))

    return await api.database.read(ask)


async def test_the_lease_of_a_run_is_renewed_and_the_answer_says_for_how_long(api: Api) -> None:
    lease = await leased(api, lease_seconds=5)
    [answer] = await answered(api, asked(lease))
    assert answer["run_id"] == str(lease.run_id) and "status" not in answer
    assert 25 < answer["lease_seconds"] <= 30
    assert 25 < await lease_left(api, lease.run_id) <= 30
    [(run_id, lease_seconds)] = api.renewed
    assert run_id == lease.run_id and 25 < lease_seconds <= 30


async def test_a_commit_that_takes_long_does_not_make_the_lease_seem_longer(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease counts from before the commit in the database; so it must for the app and for this engine."""
    lease = await leased(api, lease_seconds=5)
    transact = api.database.transact

    async def commit_slowly(*args: Any, **options: Any) -> Any:
        kept = await transact(*args, **options)
        await trio.sleep(0.5)
        return kept

    monkeypatch.setattr(api.database, "transact", commit_slowly)
    [answer] = await answered(api, asked(lease))
    assert answer["lease_seconds"] <= 29.5
    [(_, lease_seconds)] = api.renewed
    assert lease_seconds <= 29.5


async def test_a_lease_goes_no_further_than_the_timeouts_of_the_open_bodies_and_is_never_made_shorter(api: Api) -> None:
    lease = await leased(api, lease_seconds=2)
    [answer] = await answered(api, asked(lease, open_seconds=6))
    assert 5 < answer["lease_seconds"] <= 8
    assert 5 < await lease_left(api, lease.run_id) <= 8
    await answered(api, asked(lease))
    await answered(api, asked(lease, open_seconds=1))
    assert await lease_left(api, lease.run_id) > 25


async def test_runs_of_others_are_answered_stale_and_keep_their_lease(api: Api) -> None:
    lease = await leased(api, lease_seconds=5)
    unknown = {"run_id": str(uuid4()), "generation": 1, "known": 0, "open_seconds": 0}
    former = {**asked(lease), "generation": lease.generation + 1}
    for runs, workspace in ([[asked(lease), unknown], OTHER], [[former], SHOP]):
        for answer in await answered(api, *runs, workspace=workspace, wait_seconds=20):
            assert answer["status"] == "stale" and "lease_seconds" not in answer
    assert await lease_left(api, lease.run_id) <= 5


async def test_a_cancelled_run_is_told_at_once(api: Api) -> None:
    lease = await leased(api)
    async with open_poll(api, asked(lease)) as answers:
        reply = await api.person("POST", f"/v1/apps/shop/acc/runs/{lease.run_id}/cancel", {})
        assert reply.status == 200, reply.json
    assert [run["status"] for run in answers[0]] == ["cancelled"]


async def test_what_another_engine_does_is_found_by_its_hint_and_without(api: Api) -> None:
    await api.sync(function("f", "go"))
    # The same Postgres, without the hints of this engine.
    other = Database(api.database._pool)
    for has_hint in (True, False):
        lease = await api.lease(await api.send("go"))
        async with open_poll(api, asked(lease)) as answers:
            await other.transact(cancel_run, api.workspace_ids[SHOP], lease.run_id)
            if has_hint:
                api.services.hints.heard("run_news")
        assert [run["status"] for run in answers[0]] == ["cancelled"]


async def test_an_event_for_a_wait_is_told_at_once_with_the_memo_beyond_what_is_known(api: Api) -> None:
    lease = await leased(api)
    wait = {"op": "wait_for_event", "id": "w", "event": "approved", "timeout_seconds": 60}
    assert (await api.report(str(lease.run_id), lease.generation, step_op("a", 1), wait)).status == 200
    async with open_poll(api, asked(lease, known=1)) as answers:
        message = {"type": "events", "workspace": as_json(SHOP), "events": [{"name": "approved", "data": {"by": "x"}}]}
        assert (await api.signed("POST", "/v1/events", message)).status == 200
    [answer] = answers[0]
    [entry] = answer["resolved"]
    assert (entry["id"], entry["position"], entry["data"]["data"]) == ("w", 2, {"by": "x"})
    assert answer["lease_seconds"] > 20
    assert await api.database.read(audit) == []


async def test_a_timer_is_told_at_once_and_the_steps_of_the_app_itself_are_no_news(api: Api) -> None:
    lease = await leased(api)
    run_id = str(lease.run_id)
    async with open_poll(api, asked(lease)) as answers:
        await api.report(run_id, lease.generation, step_op("a", 1))
        api.services.hints.runs_have_news([lease.run_id])
        await api.report(run_id, lease.generation, {"op": "sleep", "id": "s", "seconds": 0}, known=1)
        assert not answers
        await api.database.transact(fire_timers)
    [answer] = answers[0]
    assert [entry["id"] for entry in answer["resolved"]] == ["a", "s"]


async def test_a_run_whose_end_the_app_reported_is_no_news_either(api: Api) -> None:
    lease = await leased(api)
    async with open_poll(api, asked(lease)) as answers:
        await api.report(str(lease.run_id), lease.generation, {"op": "complete", "output": 1}, ends=True)
        api.services.hints.runs_have_news([lease.run_id])
        await trio.sleep(0.2)
        assert not answers
        api.draining[0] = True
    assert [run["status"] for run in answers[0]] == ["stale"]


async def test_large_entries_come_by_reference_to_an_app_that_takes_references(api: Api) -> None:
    large = "x" * REF_BYTES_MIN
    for has_refs in (False, True):
        await api.sync(function("f", "go"), deployment=str(has_refs), has_refs=has_refs)
        lease = await api.lease(await api.send("go"))
        wait = {"op": "wait_for_event", "id": "w", "event": "approved", "timeout_seconds": 60}
        await api.report(str(lease.run_id), lease.generation, wait)
        event = {"name": "approved", "data": large}
        await api.signed("POST", "/v1/events", {"type": "events", "workspace": as_json(SHOP), "events": [event]})
        [answer] = await answered(api, asked(lease))
        [entry] = answer["resolved"]
        if not has_refs:
            assert entry["data"]["data"] == large and "ref" not in entry
            continue
        assert "data" not in entry and entry["bytes"] > REF_BYTES_MIN
        fetch = {"type": "values", "workspace": as_json(SHOP), "run_id": str(lease.run_id), "fetch": [entry["ref"]]}
        reply = await api.signed("POST", "/v1/values", fetch)
        assert reply.json["values"][0]["data"]["data"] == large


async def test_a_newer_poll_of_the_same_process_ends_the_older_one_and_no_other(api: Api) -> None:
    lease = await leased(api)
    async with open_poll(api, asked(lease), process="other") as others, open_poll(api, asked(lease)) as answers:
        await answered(api, asked(lease))
        while not answers:
            await trio.sleep(0.001)
        assert not others
        await answered(api, process="other")
    assert answers[0][0]["lease_seconds"] > 20


async def test_a_drain_answers_every_poll_and_new_ones_do_not_wait(api: Api) -> None:
    lease = await leased(api)
    async with open_poll(api, asked(lease)) as first, open_poll(api, asked(lease), process="p2") as second:
        api.draining[0] = True
    assert first[0][0]["lease_seconds"] > 20 and second[0][0]["lease_seconds"] > 20
    with trio.fail_after(10):
        assert await answered(api, asked(lease), wait_seconds=20)


async def test_a_drain_is_told_to_the_polls_and_waiting_results_and_not_looked_for(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = await leased(api)
    monkeypatch.setattr(alive_module, "LOOK_SECONDS", 3600.0)
    monkeypatch.setattr(wait_result_module, "LOOK_SECONDS_MAX", 3600.0)
    results: list[Reply] = []

    async def ask_result() -> None:
        message = {"type": "result", "workspace": as_json(SHOP), "run_id": str(lease.run_id), "wait_seconds": 30}
        results.append(await api.signed("POST", "/v1/result", message))

    async with trio.open_nursery() as nursery, open_poll(api, asked(lease)) as answers:
        nursery.start_soon(ask_result)
        await trio.testing.wait_all_tasks_blocked(0.1)
        api.draining[0] = True
        api.services.hints.drain_begins()
        while not (answers and results):
            await trio.sleep(0.001)
    assert results[0].json["status"] == "running"


async def test_leases_are_renewed_while_the_poll_is_open(api: Api) -> None:
    lease = await leased(api, lease_seconds=1)
    object.__setattr__(api.services, "lease_seconds", 0.6)
    async with open_poll(api, asked(lease)):
        while len(api.renewed) < 4:
            await trio.sleep(0.01)
        assert await lease_left(api, lease.run_id) > 0
        api.draining[0] = True


async def test_a_poll_with_a_wrong_key_or_for_another_workspace_gets_nothing(api: Api) -> None:
    lease = await leased(api, lease_seconds=5)
    assert (await poll(api, asked(lease), key=api.keys[OTHER])).status == 401
    message = {"type": "alive", "workspace": as_json(OTHER), "process": "p", "wait_seconds": 0, "runs": [asked(lease)]}
    assert (await api.signed("POST", "/v1/alive", message)).json["code"] == "wrong_workspace"
    assert await lease_left(api, lease.run_id) <= 5


RUN = {"run_id": "01990a3c-7d1e-7c3a-9b52-6f1f0e7f9a10", "generation": 1, "known": 0, "open_seconds": 0}


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"type": "nope"}, "wrong_type"),
        ({"process": ""}, "bad_name"),
        ({"process": "a\nb"}, "bad_name"),
        ({"wait_seconds": 31}, "out_of_range"),
        ({"runs": [{**RUN, "run_id": "x"}]}, "bad_name"),
        ({"runs": [{**RUN, "generation": 0}]}, "out_of_range"),
        ({"runs": [{**RUN, "open_seconds": -1}]}, "out_of_range"),
        ({"runs": [RUN, RUN]}, "duplicate_run"),
        ({"runs": {}}, "bad_field"),
    ],
)
async def test_garbage_is_refused_with_its_place(api: Api, changed: dict[str, Any], code: str) -> None:
    message = {"type": "alive", "workspace": as_json(SHOP), "process": "p", "wait_seconds": 0, "runs": [RUN], **changed}
    reply = await api.signed("POST", "/v1/alive", json.dumps(message).encode())
    assert reply.status == 400, reply.json
    assert reply.json["code"] == code, reply.json


async def test_a_generation_beyond_any_row_is_stale(api: Api) -> None:
    [answer] = await answered(api, {**RUN, "generation": 2**53 - 1, "known": 2**31 - 1})
    assert answer["status"] == "stale"
