"""Values that travel by reference, when the app or the engine dies between the value and the step that has it."""

from __future__ import annotations

import json

import pytest
from msgspec import Raw

import durable
from durable.client import SyncClient
from durable.keys import Settings
from durable.signing import Key
from durable.wire import Values, Workspace
from durable.wire_codec import decode_values_answer, encode
from tests.system.checker import assert_sound
from tests.system.processes import wait_until
from tests.system.runs import body_starts, ended_as, start_run
from tests.system.system import System
from tests.system.witness_app import pages_of

pytestmark = [pytest.mark.postgres, pytest.mark.slow]

KILLED = 137
BIG = {"n": 7, "bytes": 200_000}


def test_a_value_whose_app_died_before_its_step_is_stored_again_and_is_nobody_elses(system: System) -> None:
    (system.place / "exit_after_store").touch()
    run_id = start_run(system, "big.wanted", BIG, "stored-and-gone")
    assert system.app.wait(30) == 9
    [orphan] = _stored(system, run_id)
    system.start_app()
    wait_until("the run has ended", lambda: ended_as(system, run_id) == "completed")
    assert_sound(system)
    assert _stored(system, run_id) == [orphan], "the value that its step took is gone, the other waits for the pruner"
    other = start_run(system, "big.wanted", {**BIG, "n": 8}, "another-run")
    wait_until("the other run has ended", lambda: ended_as(system, other) == "completed")
    shop, mail = Workspace("shop", "dev"), Workspace("mail", "dev")
    for ref in (orphan, f"m:{run_id}:1"):
        assert json.loads(_fetch(system, shop, run_id, ref)) == pages_of(BIG)
        # Whoever knows the reference; with the key of the environment, which in dev is good for every app.
        assert _refusal(system, mail, run_id, ref) in ("unknown_ref", "run_not_found")
        assert _refusal(system, shop, other, ref) == "unknown_ref"


def test_an_engine_that_dies_between_a_value_and_its_step_makes_no_body_run_again(system: System) -> None:
    """When the value's answer is lost, it is stored again. The same within the step's transaction is among all crash points."""
    system.engine().kill9()
    engine = system.start_engine(crash_at="value_stored_before_answer:1")
    run_id = start_run(system, "big.wanted", {**BIG, "n": 9}, "engine-between")
    assert engine.wait(30) == KILLED
    assert len(_stored(system, run_id)) == 1
    assert system.count("SELECT count(*) FROM step WHERE run_id = $1::text::uuid", run_id) == 0
    system.start_engine()
    assert_sound(system)
    assert [line.step_id for line in body_starts(system, run_id)] == ["a", "b"]
    assert len(_stored(system, run_id)) == 1, "the value that no step took waits for the pruner"


def _stored(system: System, run_id: str) -> list[str]:
    """The references of values that no step has taken."""
    rows = system.query("SELECT value_id::text FROM stored_value WHERE run_id = $1::text::uuid ORDER BY created_at", run_id)
    return [f"v:{row['value_id']}" for row in rows]


def _fetch(system: System, workspace: Workspace, run_id: str, ref: str) -> bytes:
    settings = Settings(system.engine_url(), workspace, (Key.parse(system.read_signing_key()),))
    client = SyncClient(lambda: settings)
    try:
        answer = client.call("/v1/values", encode(Values(workspace, run_id, fetch=[ref])), "values")
    finally:
        client.close()
    [value] = decode_values_answer(answer).values
    assert value.ref == ref
    return bytes(Raw(value.data))


def _refusal(system: System, workspace: Workspace, run_id: str, ref: str) -> str:
    with pytest.raises(durable.Refused) as refused:
        _fetch(system, workspace, run_id, ref)
    assert refused.value.status == 404
    return refused.value.code
