"""The table of refusals: every code that the source can send is in it, and has one status."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import trio
import trio.testing

import engine.api
import protocol
from engine.api.failure_limiter import FAILURES_IN_ALL_MAX, FAILURES_PER_ADDRESS_MAX, WINDOW_SECONDS, FailureLimiter
from engine.api.read_body import BodyMemory
from engine.api.refusals import STATUS_OF_CODE, ApiRefused, Refused, refuse
from engine.api.replay_memory import BUCKET_SECONDS, REMEMBER_SECONDS, ReplayMemory
from engine.store.group_writer import WriterOverloaded
from protocol.requests import Refusal

RAISED = re.compile(r'(?:ApiRefused|MessageRefused|JsonRefused|SyncRefused|_Fault|_fail|_bad)\(\s*(?:address,\s*)?"([a-z_0-9]+)"')


def codes_in(*roots: Path) -> set[str]:
    return {code for root in roots for path in root.rglob("*.py") for code in RAISED.findall(path.read_text())}


def test_every_code_that_can_be_sent_is_in_the_table() -> None:
    api, wire = Path(engine.api.__path__[0]), Path(protocol.__path__[0])
    codes = codes_in(api, wire, api.parent / "store")
    assert {"bad_signature", "run_not_found", "too_deep", "duplicate_key", "invalid_expression"} <= codes
    assert codes <= set(STATUS_OF_CODE), codes - set(STATUS_OF_CODE)
    assert all(400 <= status < 600 for status in STATUS_OF_CODE.values())


@pytest.mark.parametrize("code", [code for code, status in STATUS_OF_CODE.items() if status in (429, 503)])
def test_what_may_be_sent_again_says_when(code: str) -> None:
    assert int(Refused(Refusal(code, "x")).headers["retry-after"]) >= 1


def test_an_overloaded_writer_is_a_429() -> None:
    refused = refuse(WriterOverloaded("20,001 rows wait to be written"))
    assert (refused.status, refused.headers["retry-after"]) == (429, "1")


async def test_failures_are_counted_per_address_and_in_all_and_forgotten(autojump_clock: trio.testing.MockClock) -> None:
    limiter = FailureLimiter()
    for _ in range(FAILURES_PER_ADDRESS_MAX):
        assert not limiter.is_over("a")
        limiter.count("a")
    assert limiter.is_over("a") and not limiter.is_over("b")
    for index in range(FAILURES_IN_ALL_MAX):
        limiter.count(f"address-{index}")
    assert limiter.is_over("b")
    await trio.sleep(WINDOW_SECONDS)
    assert not limiter.is_over("a") and not limiter.is_over("b")


async def test_an_id_is_remembered_for_ten_minutes_and_per_workspace(autojump_clock: trio.testing.MockClock) -> None:
    memory = ReplayMemory()
    assert memory.is_new("shop/dev", "m1") and memory.is_new("other/dev", "m1")
    await trio.sleep(REMEMBER_SECONDS - 1)
    assert not memory.is_new("shop/dev", "m1")
    await trio.sleep(2 * BUCKET_SECONDS)
    assert memory.is_new("shop/dev", "m1")


async def test_the_memory_of_ids_is_bounded_and_forgets_the_oldest(autojump_clock: trio.testing.MockClock) -> None:
    memory = ReplayMemory(ids_max=100)
    for minute in range(10):
        for index in range(20):
            assert memory.is_new("w", f"{minute}-{index}")
        await trio.sleep(BUCKET_SECONDS)
    assert sum(len(ids) for _, ids in memory._buckets) <= 100
    assert not memory.is_new("w", "9-0") and memory.is_new("w", "0-0")


def test_large_bodies_share_a_budget() -> None:
    memory = BodyMemory(bytes_max=10)
    memory.take(6)
    with pytest.raises(ApiRefused):
        memory.take(5)
    memory.give_back(6)
    memory.take(10)
