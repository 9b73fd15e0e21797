"""What programs ask: events, checkpoints, starts, results, syncs; signed answers; nothing of another workspace."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
import trio.testing

from tests.api_under_test import OTHER, SHOP, Api, as_json, function, step_op


async def test_an_event_starts_the_run_of_its_function_and_the_answer_names_it(api: Api) -> None:
    await api.sync(function("welcome", "user.created"))
    message = {"type": "events", "workspace": as_json(SHOP), "events": [{"name": "user.created", "data": {"id": 1}, "id": "e1"}]}
    reply = await api.signed("POST", "/v1/events", message)
    assert reply.status == 200
    [answer] = reply.json["events"]
    assert answer["id"] == "e1" and answer["runs"][0]["function"] == "welcome"
    assert "duplicate" not in answer


async def test_a_repeated_event_id_gets_the_first_answer_and_is_marked(api: Api) -> None:
    await api.sync(function("welcome", "user.created"))
    event = {"name": "user.created", "data": {"id": 1}, "id": "e1"}
    message = {"type": "events", "workspace": as_json(SHOP), "events": [event]}
    first = (await api.signed("POST", "/v1/events", message)).json["events"][0]
    again = (await api.signed("POST", "/v1/events", message)).json["events"][0]
    assert again == {**first, "duplicate": True}
    other = {**message, "events": [{**event, "data": {"id": 2}}]}
    assert (await api.signed("POST", "/v1/events", other)).json["events"][0] == {**first, "duplicate": True, "conflict": True}


async def test_data_comes_back_byte_for_byte(api: Api) -> None:
    await api.sync(function("welcome", "user.created"))
    raw = HEAD + b'[{"name":"user.created","data":{"z":1.50, "a":"\\u00e9"}}]}'
    reply = await api.signed("POST", "/v1/events", raw)
    event_id = reply.json["events"][0]["id"]
    shown = await api.person("GET", f"/v1/apps/shop/acc/events/{event_id}")
    assert b'"data":{"z":1.50, "a":"\\u00e9"}' in shown.raw


HEAD = b'{"type":"events","workspace":{"app":"shop","env":"acc"},"events":'
RUN = "01990a3c-7d1e-7c3a-9b52-6f1f0e7f9a10"
OTHERS_MANIFEST = {"type": "manifest", "workspace": as_json(OTHER), "protocol": [1], "functions": []}


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "empty_json"),
        (b"{", "invalid_json"),
        (b"\xff", "invalid_utf8"),
        (b'{"type":"start"}', "missing_field"),
        (HEAD + b'[]}', "too_few"),
        (HEAD + b'[{"name":"x"},{"name":"durable.x"}]}', "reserved_name"),
        (HEAD + b'[{"name":"x","data":"\\u0000"}]}', "null_character"),
        (HEAD + b'[{"name":"x","data":' + b"[" * 101 + b"]" * 101 + b"}]}", "too_deep"),
        (b'{"type":"result","workspace":{"app":"shop","env":"acc"},"run_id":"01990a3c-7d1e-7c3a-9b52-6f1f0e7f9a10"}', "wrong_type"),
        (b"[" * 100_000, "too_deep"),
    ],
)  # fmt: skip
async def test_a_bad_body_is_refused_with_a_code_and_a_signed_answer(api: Api, body: bytes, code: str) -> None:
    reply = await api.signed("POST", "/v1/events", body)
    assert (reply.status, reply.json["code"]) == (400, code)
    assert reply.json["message"] and "webhook-signature" in reply.headers


async def test_an_event_that_is_refused_takes_its_neighbours_with_it(api: Api) -> None:
    await api.sync(function("welcome", "user.created"))
    events = [{"name": "user.created", "id": "good"}, {"name": ""}]
    reply = await api.signed("POST", "/v1/events", {"type": "events", "workspace": as_json(SHOP), "events": events})
    assert reply.status == 400 and reply.json["place"] == "/events/1/name"
    listed = await api.person("GET", "/v1/apps/shop/acc/events")
    assert listed.json["events"] == []


async def test_a_checkpoint_commits_steps_and_ends_the_run(api: Api) -> None:
    await api.sync(function("welcome"))
    run_id = await api.send("welcome.asked")
    lease = await api.lease(run_id)
    reply = await api.report(run_id, lease.generation, step_op("a", {"n": 1}))
    [answer] = reply.json["entries"]
    assert answer["status"] == "ok" and answer["resolved"] == [{"id": "a", "kind": "step", "position": 1}]
    assert 0 < answer["lease_seconds"] <= 30
    assert [str(run) for run in api.news] == [run_id]
    end = await api.report(run_id, lease.generation, {"op": "complete", "output": [1, 2]}, known=1, ends=True)
    assert end.json["entries"][0]["status"] == "ok"
    result = {"type": "result", "workspace": as_json(SHOP), "run_id": run_id}
    reply = await api.signed("POST", "/v1/result", result)
    assert reply.json == {"type": "result", "run_id": run_id, "status": "completed", "output": [1, 2]}


async def test_a_checkpoint_of_an_older_generation_is_stale_and_writes_nothing(api: Api) -> None:
    await api.sync(function("welcome"))
    run_id = await api.send("welcome.asked")
    lease = await api.lease(run_id)
    reply = await api.report(run_id, lease.generation + 1, step_op("a"))
    assert reply.json["entries"][0]["status"] == "stale"
    assert (await api.person("GET", f"/v1/apps/shop/acc/runs/{run_id}")).json["steps"] == []
    assert api.news == []


async def test_one_bad_entry_does_not_fail_the_others_of_its_message(api: Api) -> None:
    await api.sync(function("welcome"))
    runs = [await api.send("welcome.asked"), await api.send("welcome.asked")]
    await api.lease(runs[0])
    entries = [
        {"run_id": runs[0], "generation": 1, "known": 0, "ops": [{"op": "dance"}], "ends": False},
        {"run_id": runs[1], "generation": 1, "known": 0, "ops": [step_op("a")], "ends": False},
    ]
    reply = await api.signed("POST", "/v1/checkpoint", {"type": "checkpoint", "workspace": as_json(SHOP), "entries": entries})
    answers = {answer["run_id"]: answer for answer in reply.json["entries"]}
    assert answers[runs[0]]["status"] == "refused" and answers[runs[0]]["error"]["code"] == "unknown_op"
    assert answers[runs[1]]["status"] == "ok"


async def test_a_start_runs_its_function_once_per_id(api: Api) -> None:
    await api.sync(function("welcome"), function("other"))
    message = {"type": "start", "workspace": as_json(SHOP), "function": "welcome", "input": {"id": 1}, "id": "once"}
    first = (await api.signed("POST", "/v1/start", message)).json
    again = (await api.signed("POST", "/v1/start", message)).json
    assert first["duplicate"] is False and again == {**first, "duplicate": True}
    elsewhere = (await api.signed("POST", "/v1/start", {**message, "function": "other"})).json
    assert elsewhere["duplicate"] is False and elsewhere["run_id"] != first["run_id"]
    run = (await api.person("GET", f"/v1/apps/shop/acc/runs/{first['run_id']}")).json
    assert run["event"]["name"] == "durable.start" and run["event"]["data"] == {"id": 1}


async def test_a_start_of_what_is_not_there_is_refused_with_words(api: Api) -> None:
    await api.sync(function("welcome"), function("gone"))
    await api.sync(function("welcome"), deployment="2")
    message = {"type": "start", "workspace": as_json(SHOP), "function": "nothing"}
    assert (await api.signed("POST", "/v1/start", message)).json["code"] == "function_not_found"
    reply = await api.signed("POST", "/v1/start", {**message, "function": "gone"})
    assert (reply.status, reply.json["code"]) == (409, "function_removed")


async def test_a_result_waits_for_the_end_and_is_answered_at_once_then(api: Api) -> None:
    await api.sync(function("welcome"))
    run_id = await api.send("welcome.asked")
    lease = await api.lease(run_id)
    replies: list[Any] = []

    async def ask() -> None:
        message = {"type": "result", "workspace": as_json(SHOP), "run_id": run_id, "wait_seconds": 20}
        replies.append(await api.signed("POST", "/v1/result", message))

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            failed = {"op": "fail", "error": {"name": "E", "message": "no"}, "retriable": False}
            await api.report(run_id, lease.generation, failed, ends=True)
    assert replies[0].json["status"] == "failed" and replies[0].json["error"] == {"name": "E", "message": "no"}


async def test_a_waiting_result_is_answered_when_the_engine_drains(api: Api) -> None:
    await api.sync(function("welcome"))
    run_id = await api.send("welcome.asked")
    replies: list[Any] = []

    async def ask() -> None:
        message = {"type": "result", "workspace": as_json(SHOP), "run_id": run_id, "wait_seconds": 30}
        replies.append(await api.signed("POST", "/v1/result", message))

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            api.draining[0] = True
    assert replies[0].json["status"] == "queued"


async def test_the_result_of_an_unknown_run_is_not_found(api: Api) -> None:
    message = {"type": "result", "workspace": as_json(SHOP), "run_id": "01990a3c-7d1e-7c3a-9b52-6f1f0e7f9a10"}
    reply = await api.signed("POST", "/v1/result", message)
    assert (reply.status, reply.json["code"]) == (404, "run_not_found")


async def test_a_push_sync_registers_and_the_same_again_changes_nothing(api: Api) -> None:
    manifest = {
        "type": "manifest", "workspace": as_json(SHOP), "protocol": [1],
        "functions": [{"id": "welcome", "triggers": [{"event": "user.created"}]}],
    }  # fmt: skip
    message = {"type": "sync", "workspace": as_json(SHOP), "url": "http://127.0.0.1:8000/", "manifest": manifest}
    first = await api.signed("PUT", "/v1/sync", message)
    assert first.json == {"type": "sync", "functions": 1, "changed": True}
    assert (await api.signed("PUT", "/v1/sync", message)).json["changed"] is False


async def test_a_sync_with_a_bad_expression_is_refused_whole_and_says_where(api: Api) -> None:
    functions = [
        {"id": "good", "triggers": [{"event": "a"}]},
        {"id": "bad", "triggers": [{"event": "a"}, {"event": "b", "if": "event.data.x =="}]},
    ]
    manifest = {"type": "manifest", "workspace": as_json(SHOP), "protocol": [1], "functions": functions}
    message = {"type": "sync", "workspace": as_json(SHOP), "url": "http://127.0.0.1:8000/", "manifest": manifest}
    reply = await api.signed("PUT", "/v1/sync", message)
    assert (reply.status, reply.json["code"]) == (400, "invalid_expression")
    assert reply.json["place"] == "/manifest/functions/1/triggers/1/if"
    assert "bad" in reply.json["message"] and "triggers[1].if" in reply.json["message"] and "1:16" in reply.json["message"]
    assert (await api.person("GET", "/v1/apps/shop/acc/functions")).json["functions"] == []


@pytest.mark.parametrize(
    ("method", "path", "message"),
    [
        ("POST", "/v1/events", {"type": "events", "events": [{"name": "x"}]}),
        ("POST", "/v1/checkpoint", {"type": "checkpoint", "entries": [{"run_id": RUN, "generation": 1, "known": 0, "ops": []}]}),
        ("POST", "/v1/start", {"type": "start", "function": "welcome"}),
        ("POST", "/v1/result", {"type": "result", "run_id": "01990a3c-7d1e-7c3a-9b52-6f1f0e7f9a10"}),
        ("PUT", "/v1/sync", {"type": "sync", "url": "http://127.0.0.1:1/", "manifest": OTHERS_MANIFEST}),
    ],
)  # fmt: skip
async def test_a_message_for_another_workspace_than_the_keys_is_refused(
    api: Api, method: str, path: str, message: dict[str, Any]
) -> None:
    body = json.dumps({**message, "workspace": as_json(OTHER)}).encode()
    reply = await api.signed(method, path, body)
    assert (reply.status, reply.json["code"]) == (401, "wrong_workspace")


async def test_a_run_of_one_workspace_is_invisible_from_another(api: Api) -> None:
    await api.sync(function("welcome"))
    run_id = await api.send("welcome.asked")
    lease = await api.lease(run_id)
    asked = {"type": "result", "workspace": as_json(OTHER), "run_id": run_id}
    assert (await api.signed("POST", "/v1/result", asked, OTHER)).json["code"] == "run_not_found"
    entry = {"run_id": run_id, "generation": lease.generation, "known": 0, "ops": [step_op("a")], "ends": False}
    reply = await api.signed(
        "POST", "/v1/checkpoint", {"type": "checkpoint", "workspace": as_json(OTHER), "entries": [entry]}, OTHER
    )
    assert reply.json["entries"][0]["status"] == "stale"
    start = {"type": "start", "workspace": as_json(OTHER), "function": "welcome"}
    assert (await api.signed("POST", "/v1/start", start, OTHER)).json["code"] == "function_not_found"
    for path in (f"runs/{run_id}", "events/" + (await api.person("GET", "/v1/apps/shop/acc/events")).json["events"][0]["id"]):
        assert (await api.person("GET", f"/v1/apps/other/acc/{path}")).status == 404
    assert (await api.person("POST", f"/v1/apps/other/acc/runs/{run_id}/cancel")).status == 404
    assert (await api.person("GET", f"/v1/apps/shop/acc/runs/{run_id}")).json["status"] == "running"
