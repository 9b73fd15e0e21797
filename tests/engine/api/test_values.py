"""Values by reference: stored for one run, fetched by it, taken by its step; unknown to everyone else."""

from __future__ import annotations

from typing import Any

import pytest

from engine.store.audit import audit
from engine.store.claim_runs import Lease
from engine.store.prune_expired import prune_expired
from engine.store.sql import Connection
from protocol.limits import CALL_BYTES_MAX, STEP_RESULT_BYTES_MAX
from protocol.manifest import Workspace
from tests.api_under_test import OTHER, SHOP, Api, Reply, as_json, function, step_op


async def ask(api: Api, run_id: object, workspace: Workspace = SHOP, **rest: Any) -> Reply:
    message = {"type": "values", "workspace": as_json(workspace), "run_id": str(run_id), **rest}
    return await api.signed("POST", "/v1/values", message, workspace)


async def store(api: Api, run_id: object, *values: Any) -> list[str]:
    reply = await ask(api, run_id, store=list(values))
    assert reply.status == 200, reply.json
    refs: list[str] = reply.json["refs"]
    return refs


async def leased(api: Api) -> Lease:
    await api.sync(function("f", "go"), has_refs=True)
    return await api.lease(await api.send("go"))


def step_with_ref(step_id: str, ref: str) -> dict[str, Any]:
    op = step_op(step_id)
    del op["data"]
    return {**op, "ref": ref}


async def memo(api: Api, run_id: object) -> dict[str, str]:
    async def read(conn: Connection) -> dict[str, str]:
        rows = await conn._raw.fetch("SELECT step_id, data FROM step WHERE run_id = $1::uuid", run_id)
        return {row["step_id"]: row["data"] for row in rows}

    return await api.database.read(read)


async def script(api: Api, text: str) -> Any:
    async def execute(conn: Connection) -> Any:
        return await conn._raw.fetchval(text)

    return await api.database.transact(execute)


async def test_values_come_back_byte_for_byte_under_their_references(api: Api) -> None:
    lease = await leased(api)
    head = f'{{"type":"values","workspace":{{"app":"shop","env":"acc"}},"run_id":"{lease.run_id}",'.encode()
    reply = await api.signed("POST", "/v1/values", head + b'"store":[{"b":1.50, "a":"\\u00e9"},null]}')
    refs = reply.json["refs"]
    assert len(set(refs)) == 2
    reply = await ask(api, lease.run_id, fetch=[refs[1], refs[0], refs[1]])
    assert [value["ref"] for value in reply.json["values"]] == [refs[1], refs[0]]
    assert b'"data":{"b":1.50, "a":"\\u00e9"}' in reply.raw


async def test_a_step_with_a_reference_has_the_data_in_the_memo_and_the_value_is_gone(api: Api) -> None:
    lease = await leased(api)
    [ref] = await store(api, lease.run_id, {"n": 1})
    resolved = []
    for _ in range(2):
        # The second is the same message once more.
        reply = await api.report(str(lease.run_id), lease.generation, step_with_ref("a", ref))
        [answer] = reply.json["entries"]
        assert answer["status"] == "ok", answer
        resolved.append(answer["resolved"][0])
    # The app has the value itself, and learns under which reference it will meet it.
    assert (resolved[0]["ref"], resolved[0]["bytes"]) == (f"m:{lease.run_id}:1", 8) and "data" not in resolved[0]
    assert await memo(api, lease.run_id) == {"a": '{"n": 1}'}
    assert await script(api, "SELECT count(*) FROM stored_value") == 0
    reply = await ask(api, lease.run_id, fetch=[f"m:{lease.run_id}:1"])
    assert reply.json["values"] == [{"ref": f"m:{lease.run_id}:1", "data": {"n": 1}}]
    assert await api.database.read(audit) == []


async def test_a_reference_is_unknown_to_every_other_run_and_workspace(api: Api) -> None:
    lease = await leased(api)
    [ref] = await store(api, lease.run_id, 1)
    await api.report(str(lease.run_id), lease.generation, step_op("a", 1))
    other_run = await api.lease(await api.send("go"))
    for wanted in (ref, f"m:{lease.run_id}:1"):
        for run_id, workspace in ((other_run.run_id, SHOP), (lease.run_id, OTHER)):
            reply = await ask(api, run_id, workspace, fetch=[wanted])
            assert (reply.status, reply.json["code"]) == (404, "unknown_ref")
    reply = await api.report(str(other_run.run_id), other_run.generation, step_with_ref("a", ref))
    [answer] = reply.json["entries"]
    assert (answer["status"], answer["error"]["code"]) == ("refused", "unknown_ref")
    assert await memo(api, other_run.run_id) == {}


async def test_a_run_of_another_workspace_takes_no_values(api: Api) -> None:
    lease = await leased(api)
    reply = await ask(api, lease.run_id, OTHER, store=[1])
    assert (reply.status, reply.json["code"]) == (404, "run_not_found")


@pytest.mark.parametrize(
    "ref", ["x", "m:", "v:", "v:1", "v:{0}", "m:{run}:", "m:{run}:0", "m:{run}:-1", "m:{run}:99999999999", "m:{run}:²"]
)
async def test_what_is_no_reference_is_unknown(api: Api, ref: str) -> None:
    lease = await leased(api)
    ref = ref.replace("{run}", str(lease.run_id)).replace("{0}", "{01990a3c-7d1e-7c3a-9b52-6f1f0e7f9a10}")
    reply = await ask(api, lease.run_id, fetch=[ref])
    assert (reply.status, reply.json["code"]) == ((404, "unknown_ref") if ref.isascii() else (400, "bad_name"))


@pytest.mark.parametrize(
    ("rest", "code"),
    [
        ({}, "bad_field"),
        ({"store": [1], "fetch": ["a"]}, "bad_field"),
        ({"fetch": ["x" * 129]}, "bad_name"),
        ({"fetch": ["x"] * 1_001}, "too_many"),
        ({"fetch": [1]}, "bad_field"),
        ({"store": ["x" * STEP_RESULT_BYTES_MAX]}, "too_large"),
    ],
)
async def test_garbage_is_refused(api: Api, rest: dict[str, Any], code: str) -> None:
    reply = await ask(api, "01990a3c-7d1e-7c3a-9b52-6f1f0e7f9a10", **rest)
    assert (reply.status, reply.json["code"]) == (400, code)


async def test_an_answer_holds_what_fits_and_the_rest_is_asked_for_again(api: Api) -> None:
    lease = await leased(api)
    largest = "x" * (STEP_RESULT_BYTES_MAX - 2)
    refs = await store(api, lease.run_id, largest, "y" * (3 << 20), "z")
    reply = await ask(api, lease.run_id, fetch=refs)
    assert [value["ref"] for value in reply.json["values"]] == refs[:1]
    reply = await ask(api, lease.run_id, fetch=refs[1:])
    assert [value["ref"] for value in reply.json["values"]] == refs[1:]
    assert len(reply.raw) <= CALL_BYTES_MAX
    reply = await ask(api, lease.run_id, fetch=[refs[2], refs[0]])
    assert [value["ref"] for value in reply.json["values"]] == refs[2:]


async def test_a_value_that_no_step_took_is_gone_after_a_day(api: Api) -> None:
    lease = await leased(api)
    old, new = await store(api, lease.run_id, 1, 2)
    await script(api, f"UPDATE stored_value SET created_at = now() - interval '25 h' WHERE value_id = '{old[2:]}'")
    assert await api.database.transact(prune_expired) == 1
    assert (await ask(api, lease.run_id, fetch=[old])).status == 404
    assert (await ask(api, lease.run_id, fetch=[new])).status == 200


async def test_values_for_a_run_that_has_ended_take_no_room(api: Api) -> None:
    lease = await leased(api)
    await api.report(str(lease.run_id), lease.generation, {"op": "complete", "output": 1}, ends=True)
    assert len(await store(api, lease.run_id, 1, 2)) == 2
    assert await script(api, "SELECT count(*) FROM stored_value") == 0
