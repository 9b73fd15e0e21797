"""An API on a real database, with real writers and without dispatcher or apps: tests lease runs and report for them."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
import trio
from quart.typing import TestClientProtocol
from quart_trio import QuartTrio

from engine.api.server import create_api
from engine.api.services import EngineInfo, Services
from engine.nursery.group_writers import make_event_writer, make_report_writer
from engine.store.admin_tokens import create_admin_token
from engine.store.claim_runs import claim_runs
from engine.store.database import Database
from engine.store.hints import Hints
from engine.store.keyring import Keyring
from engine.store.lease import Lease
from engine.store.sealing import Sealer
from engine.store.signing_keys import create_signing_key
from engine.store.sync_app import Synced, sync_app
from engine.store.workspaces import find_or_create_workspace
from protocol.manifest import Capabilities, Concurrency, FunctionConfig, Manifest, Trigger, Workspace
from protocol.signing import Key, new_key, new_message_id, reply_id, sign, verify

SHOP = Workspace("shop", "acc")
OTHER = Workspace("other", "acc")
DEV_KEY = Key.parse(new_key())


@dataclass
class Reply:
    """An answer: its status, its JSON, its headers and its raw bytes."""

    status: int
    json: Any
    headers: Any
    raw: bytes


@dataclass
class Api:
    """The API under test, and the app and the person who talk to it."""

    app: QuartTrio
    services: Services
    database: Database
    token: str
    keys: dict[Workspace, Key]
    workspace_ids: dict[Workspace, int]
    engine_id: UUID = field(default_factory=uuid4)
    draining: list[bool] = field(default_factory=lambda: [False])
    ready: list[tuple[bool, str]] = field(default_factory=lambda: [(True, "ready")])
    news: list[UUID] = field(default_factory=list)
    renewed: list[tuple[UUID, float]] = field(default_factory=list)

    @property
    def client(self) -> TestClientProtocol:
        return self.app.test_client()

    async def raw(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Reply:
        response = await self.client.open(path, method=method, data=body, headers=headers or {})
        data = await response.get_data(as_text=False)
        assert isinstance(data, bytes)
        return Reply(response.status_code, json.loads(data) if data else None, response.headers, data)

    async def signed(
        self,
        method: str,
        path: str,
        message: dict[str, Any] | bytes,
        workspace: Workspace = SHOP,
        *,
        key: Key | None = None,
        headers: dict[str, str] | None = None,
    ) -> Reply:
        """Send a signed message; a signed answer is verified, and must be the answer to this request."""
        body = message if isinstance(message, bytes) else json.dumps(message).encode()
        signing_key = key or self.keys[workspace]
        sent = signed_headers(signing_key, workspace, body) | (headers or {})
        reply = await self.raw(method, path, body, sent)
        if reply.status == 200 or "webhook-signature" in reply.headers:
            assert reply.headers["webhook-id"] == reply_id(sent["webhook-id"])
            verify(
                [signing_key],
                reply.headers["webhook-id"],
                reply.headers["webhook-timestamp"],
                reply.headers["webhook-signature"],
                reply.raw,
                time.time(),
            )
        return reply

    async def person(self, method: str, path: str, body: Any = None, token: str | None = None) -> Reply:
        data = b"" if body is None else json.dumps(body).encode()
        return await self.raw(method, path, data, {"authorization": f"Bearer {token or self.token}"})

    async def sync(
        self, *functions: FunctionConfig, workspace: Workspace = SHOP, deployment: str = "1", has_refs: bool = False
    ) -> Synced:
        capabilities = Capabilities(checkpoint=True, refs=has_refs, alive=True)
        manifest = Manifest(workspace, [1], list(functions), capabilities=capabilities, deployment=deployment)
        return await self.database.transact(sync_app, self.workspace_ids[workspace], "http://127.0.0.1:9/", manifest)

    async def send(self, name: str, data: Any = None, workspace: Workspace = SHOP) -> str:
        """Send an event; the id of the one run that it made."""
        message = {"type": "events", "workspace": as_json(workspace), "events": [{"name": name, "data": data}]}
        reply = await self.signed("POST", "/v1/events", message, workspace)
        assert reply.status == 200, reply.json
        run_id: str = reply.json["events"][0]["runs"][0]["run_id"]
        return run_id

    async def lease(self, run_id: str, lease_seconds: float = 30.0) -> Lease:
        """Lease all due runs; the lease of this one."""
        claimed = await self.database.transact(claim_runs, self.engine_id, 100, lease_seconds)
        return next(lease for lease in claimed.leases if str(lease.run_id) == run_id)

    async def report(self, run_id: str, generation: int, *ops: dict[str, Any], known: int = 0, ends: bool = False) -> Reply:
        entry = {"run_id": run_id, "generation": generation, "known": known, "ops": list(ops), "ends": ends}
        message = {"type": "checkpoint", "workspace": as_json(SHOP), "entries": [entry]}
        return await self.signed("POST", "/v1/checkpoint", message)


def as_json(workspace: Workspace) -> dict[str, str]:
    return {"app": workspace.app, "env": workspace.env}


def signed_headers(key: Key, workspace: Workspace, body: bytes, *, at: float | None = None) -> dict[str, str]:
    message_id, timestamp = new_message_id(), int(time.time() if at is None else at)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": sign([key], message_id, timestamp, body),
        "durable-workspace": str(workspace),
        "content-type": "application/json",
    }


def function(name: str, *events: str, limit: int | None = None, key: str | None = None, **rest: Any) -> FunctionConfig:
    """A function of a manifest."""
    triggers = [Trigger(event) for event in events or (f"{name}.asked",)]
    concurrency = [Concurrency(limit, key)] if limit is not None else []
    return FunctionConfig(name, triggers, concurrency=concurrency, **rest)


def step_op(step_id: str, data: Any = None, **rest: Any) -> dict[str, Any]:
    return {
        "op": "step",
        "id": step_id,
        "data": data,
        "attempt": 1,
        "started_at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "duration_seconds": 0.001,
        "seen": 0,
        **rest,
    }


@pytest.fixture
async def api(database: Database) -> AsyncIterator[Api]:
    made = await open_api(database, mode="start")
    async with trio.open_nursery() as nursery:
        await nursery.start(made.services.events.serve)
        await nursery.start(made.services.reports.serve)
        yield made
        nursery.cancel_scope.cancel()


@pytest.fixture
async def dev_api(database: Database) -> AsyncIterator[Api]:
    made = await open_api(database, mode="dev")
    async with trio.open_nursery() as nursery:
        await nursery.start(made.services.events.serve)
        await nursery.start(made.services.reports.serve)
        yield made
        nursery.cancel_scope.cancel()


async def open_api(database: Database, mode: Any) -> Api:
    sealer, hints = Sealer("a secret key for tests, long enough"), Hints()
    keys: dict[Workspace, Key] = {}
    ids: dict[Workspace, int] = {}
    for workspace in (SHOP, OTHER):
        ids[workspace] = await database.transact(find_or_create_workspace, workspace.app, workspace.env)
        _, text = await database.transact(create_signing_key, sealer, ids[workspace])
        keys[workspace] = Key.parse(text)
    _, token = await database.transact(create_admin_token, "tests")
    draining, ready, news = [False], [(True, "ready")], list[UUID]()
    renewed: list[tuple[UUID, float]] = []
    database.on_run_news = hints.runs_have_news

    async def is_ready() -> tuple[bool, str]:
        return ready[0]

    services = Services(
        database=database,
        events=make_event_writer(database, hints),
        reports=make_report_writer(database, hints, 30.0),
        hints=hints,
        keys=Keyring(database, sealer, DEV_KEY if mode == "dev" else None),
        sealer=sealer,
        mode=mode,
        engine=EngineInfo(uuid4(), "test", "0", datetime.now(UTC)),
        is_draining=lambda: draining[0],
        is_ready=is_ready,
        task_tree=lambda: {"name": "main", "children": []},
        on_checkpoint=news.append,
        on_alive=lambda run_id, lease_seconds: renewed.append((run_id, lease_seconds)),
    )
    return Api(
        create_api(services),
        services,
        database,
        token,
        keys,
        ids,
        draining=draining,
        ready=ready,
        news=news,
        renewed=renewed,
    )
