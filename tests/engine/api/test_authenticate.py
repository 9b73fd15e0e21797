"""Who may ask what: every route has its authentication, and every way to get a signature wrong is the same 401."""

from __future__ import annotations

import json
import time
from uuid import UUID

import pytest
from werkzeug.datastructures import Headers

from engine.api.machine_routes import MACHINE_ROUTES
from engine.api.server import ROUTES
from engine.store.admin_tokens import (
    ADMIN_TOKEN_PREFIX,
    admin_token_sha256,
    new_admin_token,
    register_dev_token,
    revoke_admin_token,
)
from protocol.manifest import Workspace
from protocol.signing import Key, new_key, sign
from tests.api_under_test import DEV_KEY, OTHER, SHOP, Api, as_json, function, signed_headers

EVENTS = {"type": "events", "workspace": as_json(SHOP), "events": [{"name": "x"}]}
BODY = json.dumps(EVENTS).encode()


async def test_every_address_of_the_router_is_in_the_table_and_refuses_strangers(api: Api) -> None:
    rules = {(rule.rule, method) for rule in api.app.url_map.iter_rules() for method in rule.methods - {"HEAD"}}
    # Machine routes do not come as far as the router: their server has nothing but the rows.
    assert rules == {(route.path, route.method) for route in ROUTES if route not in MACHINE_ROUTES}
    for route in ROUTES:
        path = route.path
        for part in ("<app>", "<env>", "<run_id>", "<path:event_id>", "<function>", "<key_id>"):
            path = path.replace(part, "x")
        assert "<" not in path
        for method in {route.method, "HEAD"} if route.method == "GET" else {route.method}:
            reply = await api.client.open(path, method=method)
            assert reply.status_code == (200 if route.access == "anyone" else 401), (method, path)


async def test_an_unknown_address_and_a_wrong_method_are_json_refusals(api: Api) -> None:
    reply = await api.raw("GET", "/v1/nothing")
    assert (reply.status, reply.json["code"]) == (404, "not_found")
    reply = await api.raw("DELETE", "/v1/checkpoint")
    assert (reply.status, reply.json["code"]) == (405, "method_not_allowed")
    assert reply.headers["allow"] == "POST"
    assert (await api.raw("OPTIONS", "/v1/events")).status == 405


async def test_a_good_signature_comes_in_and_its_id_only_once(api: Api) -> None:
    headers = signed_headers(api.keys[SHOP], SHOP, BODY)
    assert (await api.raw("POST", "/v1/events", BODY, headers)).status == 200
    again = await api.raw("POST", "/v1/events", BODY, headers)
    assert (again.status, again.json["code"]) == (401, "bad_signature")


async def test_every_kind_of_bad_signature_gets_the_same_answer(api: Api) -> None:
    key, now = api.keys[SHOP], time.time()
    good = signed_headers(key, SHOP, BODY)
    bad: list[dict[str, str]] = [
        {name: value for name, value in good.items() if name != missing}
        for missing in ("webhook-id", "webhook-timestamp", "webhook-signature", "durable-workspace")
    ]
    bad += [
        {**good, "webhook-signature": signature}
        for signature in (
            "",
            "v1,",
            "v1",
            "v1,AAAA",
            "v2," + "A" * 44,
            "v1," + "A" * 43 + "=",
            " ".join(["v1," + "A" * 43 + "="] * 10_000),
        )
    ]
    bad += [signed_headers(key, SHOP, BODY, at=now + offset) for offset in (-301, 301, -10_000)]
    bad += [{**good, "webhook-timestamp": odd} for odd in ("nan", "1e9", "-1", "0x10", " 1", "9" * 40)]
    bad += [signed_headers(Key.parse(new_key()), SHOP, BODY), signed_headers(api.keys[OTHER], SHOP, BODY)]
    bad += [
        signed_headers(key, workspace, BODY)
        for workspace in (OTHER, Workspace("shop", "prod"), Workspace("*", "acc"), Workspace("no", "acc"))
    ]
    bad += [signed_headers(key, SHOP, BODY + b" "), {}]
    answers = set()
    for headers in bad:
        reply = await api.raw("POST", "/v1/events", BODY, headers)
        assert reply.status == 401, headers
        assert "webhook-signature" not in reply.headers
        answers.add(reply.raw)
    assert len(answers) == 1
    assert len(bad) < 30  # more would be slowed down


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp", "webhook-signature", "durable-workspace"])
async def test_a_header_that_comes_twice_is_no_credential(api: Api, name: str) -> None:
    headers = Headers(signed_headers(api.keys[SHOP], SHOP, BODY))
    headers.add(name, headers[name])
    reply = await api.client.post("/v1/events", data=BODY, headers=headers)
    assert reply.status_code == 401


async def test_who_fails_too_often_is_slowed_down_and_who_was_good_is_not(api: Api) -> None:
    assert (await api.signed("POST", "/v1/events", EVENTS)).status == 200
    statuses = [
        (await api.raw("GET", "/v1/apps", headers={"authorization": f"Bearer {new_admin_token()}"})).status for _ in range(35)
    ]
    assert statuses[0] == 401 and statuses[-1] == 429
    reply = await api.raw("GET", "/v1/apps", headers={"authorization": f"Bearer {new_admin_token()}"})
    assert reply.json["code"] == "too_many_failures" and 1 <= int(reply.headers["retry-after"]) <= 61
    assert (await api.signed("POST", "/v1/events", EVENTS)).status == 200


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer x",
        "Basic dat_x",
        f"Bearer {ADMIN_TOKEN_PREFIX}",
        "Bearer dat_" + "x" * 9_000,
        "Bearer dek_" + "x" * 43,
    ],
)
async def test_a_bad_token_is_refused(api: Api, header: str) -> None:
    reply = await api.raw("GET", "/v1/apps", headers={"authorization": header})
    assert (reply.status, reply.json["code"]) == (401, "bad_token")


async def test_a_revoked_token_does_not_come_in_any_more(api: Api) -> None:
    await api.database.transact(revoke_admin_token, admin_token_sha256(api.token))
    assert (await api.person("GET", "/v1/apps")).status == 401


async def test_a_dev_token_is_good_in_dev_mode_only(api: Api, dev_api: Api) -> None:
    token = new_admin_token()
    await api.database.transact(register_dev_token, token)
    assert (await api.person("GET", "/v1/apps", token=token)).status == 401
    assert (await dev_api.person("GET", "/v1/apps", token=token)).status == 200


async def test_in_dev_mode_an_unknown_app_signs_with_the_dev_key_and_is_known_then(dev_api: Api) -> None:
    new, acc = Workspace("new", "dev"), Workspace("new", "acc")
    message = {**EVENTS, "workspace": as_json(new)}
    assert (await dev_api.signed("POST", "/v1/events", message, new, key=DEV_KEY)).status == 200
    assert (await dev_api.signed("POST", "/v1/events", message, new, key=DEV_KEY)).status == 200
    assert "new" in {entry["app"] for entry in (await dev_api.person("GET", "/v1/apps")).json["apps"]}
    refused = await dev_api.signed("POST", "/v1/events", {**EVENTS, "workspace": as_json(acc)}, acc, key=DEV_KEY)
    assert refused.status == 401


async def test_the_dev_key_is_nothing_to_an_engine_in_earnest(api: Api) -> None:
    new = Workspace("new", "dev")
    assert (await api.signed("POST", "/v1/events", {**EVENTS, "workspace": as_json(new)}, new, key=DEV_KEY)).status == 401
    assert "new" not in {entry["app"] for entry in (await api.person("GET", "/v1/apps")).json["apps"]}


async def test_keys_rotate_without_a_failed_message(api: Api) -> None:
    assert (await api.signed("POST", "/v1/events", EVENTS)).status == 200
    made = (await api.person("POST", "/v1/apps/shop/acc/keys", {"kind": "signing"})).json
    new = Key.parse(made["key"])
    assert (await api.signed("POST", "/v1/events", EVENTS)).status == 200
    assert (await api.signed("POST", "/v1/events", EVENTS, key=new)).status == 200
    refused = await api.person("POST", "/v1/apps/shop/acc/keys", {"kind": "signing"})
    assert (refused.status, refused.json["code"]) == (409, "too_many_keys")
    listed = (await api.person("GET", "/v1/apps/shop/acc/keys")).json["signing_keys"]
    [old_id] = {key["key_id"] for key in listed} - {made["key_id"]}
    assert (await api.person("DELETE", f"/v1/apps/shop/acc/keys/{old_id}")).status == 200
    assert (await api.signed("POST", "/v1/events", EVENTS)).status == 401
    assert (await api.signed("POST", "/v1/events", EVENTS, key=new)).status == 200
    assert (await api.person("DELETE", f"/v1/apps/other/acc/keys/{made['key_id']}")).status == 404
    assert made["key"].encode() not in (await api.person("GET", "/v1/apps/shop/acc/keys")).raw


async def test_an_event_key_sends_events_to_its_workspace_and_does_nothing_else(api: Api) -> None:
    made = (await api.person("POST", "/v1/apps/shop/acc/keys", {"kind": "event", "label": "website"})).json
    bearer = {"authorization": f"Bearer {made['key']}"}
    assert made["key"].startswith("dek_")
    assert (await api.raw("POST", "/v1/events", BODY, bearer)).status == 200
    elsewhere = json.dumps({**EVENTS, "workspace": as_json(OTHER)}).encode()
    assert (await api.raw("POST", "/v1/events", elsewhere, bearer)).json["code"] == "wrong_workspace"
    for route in ROUTES:
        if route.access in ("apps", "people"):
            path = route.path.replace("<app>", "shop").replace("<env>", "acc").replace("<run_id>", str(UUID(int=0)))
            assert (await api.raw(route.method, path, BODY, bearer)).status == 401, route.path
    assert (await api.person("DELETE", f"/v1/apps/shop/acc/keys/{made['key_id']}")).status == 200
    listed = (await api.person("GET", "/v1/apps/shop/acc/keys")).json["event_keys"]
    assert listed[0]["label"] == "website" and listed[0]["revoked_at"]


async def test_a_bearer_and_a_signature_together_count_as_the_bearer(api: Api) -> None:
    headers = {**signed_headers(api.keys[SHOP], SHOP, BODY), "authorization": "Bearer dek_wrong"}
    assert (await api.raw("POST", "/v1/events", BODY, headers)).status == 401


async def test_the_stock_library_verifies_our_answers(api: Api) -> None:
    from standardwebhooks import Webhook

    await api.sync(function("welcome"))
    reply = await api.signed("POST", "/v1/events", EVENTS)
    Webhook(api.keys[SHOP].text()).verify(reply.raw, dict(reply.headers))


async def test_two_signatures_while_rotating_are_as_good_as_one(api: Api) -> None:
    headers = signed_headers(api.keys[SHOP], SHOP, BODY)
    stamp = int(headers["webhook-timestamp"])
    headers["webhook-signature"] = sign([Key.parse(new_key()), api.keys[SHOP]], headers["webhook-id"], stamp, BODY)
    assert (await api.raw("POST", "/v1/events", BODY, headers)).status == 200
