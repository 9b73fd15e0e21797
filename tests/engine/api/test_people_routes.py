"""What people ask and change; and that bad input of any kind is a refusal in words, never a 500."""

from __future__ import annotations

from typing import Any

import pytest

from engine.store.database import DatabaseUnavailable
from engine.store.sql import Connection
from tests.api_under_test import Api, function, step_op

RUNS = "/v1/apps/shop/acc/runs"


async def audit_log(api: Api) -> list[tuple[str, str]]:
    async def read(conn: Connection) -> list[tuple[str, str]]:
        rows = await conn._raw.fetch("SELECT actor, action FROM audit_entry ORDER BY audit_entry_id")
        return [(row["actor"], row["action"]) for row in rows]

    return await api.database.read(read)


async def test_a_run_is_listed_shown_and_cancelled(api: Api) -> None:
    await api.sync(function("welcome"))
    run_id = await api.send("welcome.asked", {"id": 1})
    [listed] = (await api.person("GET", RUNS)).json["runs"]
    assert (listed["run_id"], listed["status"], listed["function"]) == (run_id, "queued", "welcome")
    shown = (await api.person("GET", f"{RUNS}/{run_id}")).json
    assert shown["why"].startswith("Due since") and shown["event"]["data"] == {"id": 1}
    cancelled = await api.person("POST", f"{RUNS}/{run_id}/cancel")
    assert cancelled.json == {"run_id": run_id, "status": "cancelled"}
    assert (await api.person("POST", f"{RUNS}/{run_id}/cancel")).status == 200
    assert (await api.person("GET", f"{RUNS}/{run_id}?wait=30s")).json["status"] == "cancelled"
    assert await audit_log(api) == [("token:tests", "run.cancel")]


async def test_a_cancelled_run_tells_its_app_at_the_next_checkpoint(api: Api) -> None:
    await api.sync(function("welcome"))
    run_id = await api.send("welcome.asked")
    lease = await api.lease(run_id)
    await api.person("POST", f"{RUNS}/{run_id}/cancel")
    assert (await api.report(run_id, lease.generation, step_op("a"))).json["entries"][0]["status"] == "cancelled"


async def test_a_run_that_has_ended_can_not_be_cancelled(api: Api) -> None:
    await api.sync(function("welcome"))
    run_id = await api.send("welcome.asked")
    lease = await api.lease(run_id)
    await api.report(run_id, lease.generation, {"op": "complete", "output": 1}, ends=True)
    reply = await api.person("POST", f"{RUNS}/{run_id}/cancel")
    assert (reply.status, reply.json["code"]) == (409, "already_ended")


async def test_a_person_starts_a_function_and_sends_events(api: Api) -> None:
    await api.sync(function("welcome"))
    path = "/v1/apps/shop/acc/functions/welcome/start"
    first = (await api.person("POST", path, {"input": {"id": 7}, "id": "once"})).json
    again = (await api.person("POST", path, {"input": {"id": 7}, "id": "once"})).json
    assert (first["run_id"], again["duplicate"]) == (again["run_id"], True)
    assert (await api.person("POST", path)).status == 200
    sent = await api.person("POST", "/v1/apps/shop/acc/events", {"events": [{"name": "welcome.asked", "id": "e/1"}]})
    assert sent.json["events"][0]["runs"][0]["function"] == "welcome"
    assert (await api.person("GET", "/v1/apps/shop/acc/events/e/1")).json["id"] == "e/1"
    assert {action for _, action in await audit_log(api)} == {"function.start", "event.send"}


async def test_functions_apps_audit_and_engine_can_be_looked_at(api: Api) -> None:
    await api.sync(function("welcome", limit=2, key="tenantId"))
    [entry] = (await api.person("GET", "/v1/apps/shop/acc/functions")).json["functions"]
    assert entry["limits"] == [{"limit": 2, "key": "tenantId"}] and entry["triggers"] == [{"event": "welcome.asked", "if": None}]
    assert entry["config"]["id"] == "welcome" and entry["hold"] is None
    apps = (await api.person("GET", "/v1/apps")).json["apps"]
    assert [(app["app"], app["functions"]) for app in apps] == [("other", 0), ("shop", 1)]
    assert (await api.person("GET", "/v1/audit")).json == {"count": 0, "findings": []}
    assert (await api.person("GET", "/v1/engine/tasks")).json["name"] == "main"
    assert (await api.person("GET", "/v1/engine")).json["mode"] == "start"


BAD: list[tuple[str, str, Any, int, str]] = [
    ("GET", f"{RUNS}/not-a-uuid", None, 404, "run_not_found"),
    ("GET", f"{RUNS}/01990A3C-7D1E-7C3A-9B52-6F1F0E7F9A10", None, 404, "run_not_found"),
    ("GET", f"{RUNS}/%00", None, 404, "run_not_found"),
    ("GET", f"{RUNS}?status=dancing", None, 400, "bad_parameter"),
    ("GET", f"{RUNS}?function=a%00b", None, 400, "bad_parameter"),
    ("GET", f"{RUNS}?event=a%00b", None, 400, "bad_parameter"),
    ("GET", f"{RUNS}?event=%ed%a0%80", None, 200, ""),
    ("GET", f"{RUNS}?cursor=%00", None, 400, "bad_cursor"),
    ("GET", f"{RUNS}?limit=0", None, 400, "bad_parameter"),
    ("GET", f"{RUNS}?limit=-1", None, 400, "bad_parameter"),
    ("GET", f"{RUNS}?limit=99999999999999999999", None, 400, "bad_parameter"),
    ("GET", f"{RUNS}?limit=%c2%b2", None, 400, "bad_parameter"),
    ("GET", f"{RUNS}?stauts=failed", None, 400, "bad_parameter"),
    ("GET", f"{RUNS}/01990a3c-7d1e-7c3a-9b52-6f1f0e7f9a10?wait=99h", None, 400, "bad_parameter"),
    ("GET", f"{RUNS}/01990a3c-7d1e-7c3a-9b52-6f1f0e7f9a10?wait=nan", None, 400, "bad_parameter"),
    ("GET", "/v1/apps/shop/acc/events?cursor=AAAAAAAAAAAAAAAA", None, 400, "bad_cursor"),
    ("GET", "/v1/apps/shop/acc/events/%00", None, 404, "event_not_found"),
    ("GET", "/v1/apps/Shop/acc/runs", None, 404, "workspace_not_found"),
    ("GET", "/v1/apps/shop/none/runs", None, 404, "workspace_not_found"),
    ("GET", "/v1/apps/%00/acc/runs", None, 404, "workspace_not_found"),
    ("POST", "/v1/apps/shop/acc/functions/nothing/start", {}, 404, "function_not_found"),
    ("POST", "/v1/apps/shop/acc/functions/%00/start", {}, 404, "function_not_found"),
    ("POST", "/v1/apps/shop/acc/functions/welcome/start", [], 400, "bad_field"),
    ("POST", "/v1/apps/shop/acc/functions/welcome/start", {"id": ""}, 400, "bad_field"),
    ("POST", "/v1/apps/shop/acc/functions/welcome/start", {"input": "\ud800"}, 400, "lone_surrogate"),
    ("POST", "/v1/apps/shop/acc/functions/welcome/start", {"input": "x" * (1 << 20)}, 400, "too_large"),
    ("POST", "/v1/apps/shop/acc/events", None, 400, "empty_json"),
    ("POST", "/v1/apps/shop/acc/events", {"events": []}, 400, "too_few"),
    ("POST", "/v1/apps/shop/acc/events", {"events": [{"name": "durable.start"}]}, 400, "reserved_name"),
    ("POST", "/v1/apps/shop/acc/events", {"events": [{"name": "x", "id": "a\x00"}]}, 400, "null_character"),
    ("POST", "/v1/apps/shop/acc/keys", {"kind": "master"}, 400, "bad_field"),
    ("POST", "/v1/apps/shop/acc/keys", {"kind": "event", "label": "x" * 101}, 400, "bad_field"),
    ("DELETE", "/v1/apps/shop/acc/keys/zz", None, 404, "key_not_found"),
    ("DELETE", f"/v1/apps/shop/acc/keys/{'é' * 64}", None, 404, "key_not_found"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "body", "status", "code"), BAD)
async def test_bad_input_is_refused_in_words(api: Api, method: str, path: str, body: Any, status: int, code: str) -> None:
    reply = await api.person(method, path, body)
    assert reply.status == status, reply.json
    if code:
        assert reply.json["code"] == code and reply.json["message"]
        assert reply.headers["content-type"] == "application/json" and reply.headers["x-content-type-options"] == "nosniff"


async def test_an_unexpected_error_is_a_500_with_a_reference_and_no_words_of_it(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*args: object, **rest: object) -> None:
        raise RuntimeError("the inner words")

    monkeypatch.setattr(api.database, "read", fail)
    reply = await api.person("GET", "/v1/apps")
    assert (reply.status, reply.json["code"]) == (500, "internal_error")
    assert b"inner words" not in reply.raw and "reference" in reply.json["message"]


async def test_a_lost_database_is_a_503_to_come_back_to(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*args: object, **rest: object) -> None:
        raise DatabaseUnavailable("connection refused")

    monkeypatch.setattr(api.database, "read", fail)
    for reply in (
        await api.person("GET", "/v1/apps"),
        await api.signed(
            "POST", "/v1/events", {"type": "events", "workspace": {"app": "shop", "env": "acc"}, "events": [{"name": "x"}]}
        ),
    ):
        assert (reply.status, reply.json["code"], reply.headers["retry-after"]) == (503, "database_unavailable", "1")


async def test_health_says_alive_and_ready_and_nothing_else(api: Api) -> None:
    assert (await api.raw("GET", "/healthz")).json == {"status": "ok"}
    assert (await api.raw("GET", "/readyz")).status == 200
    api.ready[0] = (False, "the database does not answer")
    reply = await api.raw("GET", "/readyz")
    assert (reply.status, reply.json["status"]) == (503, "not_ready")
    api.draining[0] = True
    assert (await api.raw("GET", "/readyz")).json == {"status": "draining"}
    assert (await api.raw("GET", "/healthz")).status == 200


async def test_a_key_made_for_a_new_workspace_makes_it(api: Api) -> None:
    reply = await api.person("POST", "/v1/apps/brandnew/prod/keys", {"kind": "signing"})
    assert reply.status == 200 and reply.json["key"].startswith("whsec_")
    assert (await api.person("GET", "/v1/apps/brandnew/prod/runs")).json == {"runs": [], "cursor": None}
