"""A call that was read late: its leases count from when the engine signed it, not from when a frozen process got to it."""

from __future__ import annotations

import json
import time

import pytest

import durable
from durable.lease import LEASE_MARGIN_SECONDS, Lease
from durable.read_call import CallReader, InvokeCall
from tests.sdk_python.fake_engine import KEY_TEXT, FakeEngine

INVOKE = {
    "type": "invoke",
    "workspace": {"app": "shop", "env": "prod"},
    "invocations": [
        {
            "run_id": "01990a3c-7d1e-7c3a-9b52-6f1f0e7f9a10",
            "generation": 1,
            "attempt": 1,
            "function": "f",
            "event": {"id": "e", "name": "x", "data": None, "received_at": "2026-01-31T09:00:00.000000Z"},
            "lease_seconds": 30,
            "steps": [],
            "retries": [],
            "waiting": [],
        }
    ],
}


@pytest.mark.parametrize(("age_seconds", "may_start"), [(0, True), (20, True), (29, False), (120, False)])
def test_no_body_starts_on_a_lease_that_ended_before_the_call_was_read(
    monkeypatch: pytest.MonkeyPatch, age_seconds: int, may_start: bool
) -> None:
    monkeypatch.setenv("DURABLE_ENV", "prod")
    monkeypatch.setenv("DURABLE_SIGNING_KEY", KEY_TEXT)
    engine = FakeEngine()
    try:
        body = json.dumps(INVOKE).encode()
        headers = list(engine.signed_headers(body, age_seconds=age_seconds).items())
        read_at = time.monotonic()
        read = CallReader(durable.App("shop")).read("POST", headers, body, read_at)
    finally:
        engine._server.server_close()
    assert isinstance(read, InvokeCall), read
    assert Lease(read.received_at, read.invocations[0].lease_seconds).allows_start(read_at) is may_start
    if age_seconds == 0:
        assert read_at - read.received_at < LEASE_MARGIN_SECONDS
