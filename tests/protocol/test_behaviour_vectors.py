"""replays.json and invoke_end.json against small models of the SPEC, so that no vector asks for two things at once."""

import json
from typing import Any

import pytest

from protocol.messages import RefusedEntry, decode_line
from tests.protocol.invoke_end_reference import run_after
from tests.protocol.plan_reference import plan
from tests.protocol.vector_files import load, named, validator

RUN = "01990a3c-7d1e-7c3a-9b52-6f1f0e7f9a10"


@pytest.mark.parametrize("case", **named(load("replays.json")["cases"]))
def test_a_replay_plans_what_the_vector_says(case: dict[str, Any]) -> None:
    got, expect = plan(case), case["expect"]
    assert {key: got[key] for key in ("delivered", "starts", "reports")} == {
        key: expect[key] for key in ("delivered", "starts", "reports")
    }
    if expect["end"] is None or expect["end"]["op"] == "complete":
        assert got["end"] == expect["end"]
    else:
        assert got["end"] is not None and expect["end"].items() <= got["end"].items()


@pytest.mark.parametrize("case", **named(load("replays.json")["ref_cases"]))
def test_a_replay_with_references_plans_what_one_with_the_values_does(case: dict[str, Any]) -> None:
    memo = [{**entry, "data": case["values"][entry["ref"]]} if "ref" in entry else entry for entry in case["memo"]]
    expect = dict(case["expect"])
    fetched = expect.pop("fetched")
    assert plan({**case, "memo": memo}) == expect
    assert set(fetched) == {entry["ref"] for entry in case["memo"] if "ref" in entry and entry["id"] in expect["delivered"]}


@pytest.mark.parametrize("case", **named(load("replays.json")["cases"] + load("replays.json")["ref_cases"]))
def test_the_memo_and_the_reports_of_a_replay_may_travel(case: dict[str, Any]) -> None:
    invocation = {
        "run_id": RUN, "generation": 1, "attempt": 1, "function": "f", "lease_seconds": 30,
        "event": {"id": "e", "name": "x", "data": 1, "received_at": "2026-01-31T09:00:00Z"},
        "steps": case["memo"], "retries": case["retries"], "waiting": case["waiting"],
    }  # fmt: skip
    workspace = {"app": "shop", "env": "dev"}
    validator("invoke.json").validate({"type": "invoke", "workspace": workspace, "invocations": [invocation]})
    ended = {"type": "ended", "run_id": RUN, "generation": 1, "known": 0, "ops": case["expect"]["reports"]}
    validator("ended.json").validate(ended)


@pytest.mark.parametrize("case", **named(load("invoke_end.json")["cases"]))
def test_the_end_of_an_invocation_leads_where_the_vector_says(case: dict[str, Any]) -> None:
    got = run_after(case["before"], case["known"], case["ops"])
    expect = {"attempt": got["attempt"]} | case["expect"]
    assert got == expect


@pytest.mark.parametrize("case", **named(load("invoke_end.json")["cases"]))
def test_the_ops_of_an_end_may_travel(case: dict[str, Any]) -> None:
    line = {"type": "ended", "run_id": RUN, "generation": 1, "known": case["known"], "ops": case["ops"]}
    validator("ended.json").validate(line)
    assert not isinstance(decode_line(json.dumps(line).encode()), RefusedEntry)
