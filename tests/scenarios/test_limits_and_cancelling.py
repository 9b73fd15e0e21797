"""Concurrency limits, cancelling, starting by hand, and events that start functions."""

from __future__ import annotations

import pytest

import durable
from tests.scenarios.asking import Gate, begin, ended, get, most_at_once, output, send, shown, spans, stands, starts, waits_at
from tests.system.processes import wait_until
from tests.system.system import System


def test_a_sent_event_starts_another_function_exactly_once(system: System) -> None:
    run_id = begin(system, "parent.wanted", {"n": "sent once"})
    first, second = output(system, run_id)
    assert len(ended(system, run_id)["invocations"]) >= 2, "it was replayed, and sent nothing then"
    [decision] = get(system, f"events/{first}")["decisions"]
    assert decision["function"] == "child" and output(system, decision["run_id"]) == "sent once"
    assert get(system, f"events/{second}")["decisions"] == []
    children = system.count("SELECT count(*) FROM run JOIN event USING (event_id) WHERE data = $1", '{"n":"sent once"}')
    assert children == 2, "the parent and one child"


def test_ten_runs_of_one_key_run_two_at_a_time_in_the_order_of_queueing(system: System) -> None:
    run_ids = [begin(system, "limited.wanted", {"n": n, "tenant": "ten", "seconds": 0.2}) for n in range(10)]
    others = [begin(system, "limited.wanted", {"n": n, "tenant": f"other-{n}", "seconds": 0.2}) for n in range(3)]
    assert [output(system, run_id) for run_id in run_ids] == list(range(10))
    assert [output(system, run_id) for run_id in others] == list(range(3))
    bodies = spans(system, run_ids, "work")
    assert len(bodies) == 10 and most_at_once(bodies) == 2
    leases = system.query(
        "SELECT run_id::text, leased_at, ended_at FROM invocation WHERE run_id = ANY($1::text[]::uuid[])", run_ids
    )
    assert most_at_once([(row["leased_at"].timestamp(), row["ended_at"].timestamp(), row["run_id"]) for row in leases]) == 2
    by_lease = [row["run_id"] for row in sorted(leases, key=lambda row: row["leased_at"])]
    assert by_lease == run_ids


def test_a_queued_run_says_why_it_waits_and_is_cancelled_at_once(system: System) -> None:
    gate = Gate(system)
    holder = begin(system, "single.wanted", {"n": 1, "gate": str(gate)})
    wait_until("the first holds the slot", lambda: starts(system, holder, "hold"))
    queued = begin(system, "single.wanted", {"n": 2, "gate": str(gate)})
    run = stands(system, queued, lambda run: run["why"] and holder in run["why"], "it says who holds the slot")
    assert run["status"] == "queued"
    assert system.durable("run", "cancel", queued)["status"] == "cancelled"
    assert shown(system, queued)["status"] == "cancelled"
    gate.open()
    assert output(system, holder) == 1
    assert starts(system, queued) == []


def test_a_waiting_run_is_cancelled_at_once_and_takes_no_event_any_more(system: System) -> None:
    run_id = begin(system, "user.created", {"id": "cancelled", "cooldown": 0, "approval_timeout": "1h"})
    waits_at(system, run_id, "approve")
    system.durable("run", "cancel", run_id)
    assert system.count("SELECT count(*) FROM wait WHERE run_id = $1::text::uuid", run_id) == 0
    send(system, "approval.received", {"userId": "cancelled", "by": "too late"})
    run = shown(system, run_id)
    assert run["status"] == "cancelled" and run["output"] is None
    assert starts(system, run_id, "send-email") == []


def test_a_running_run_is_cancelled_at_its_next_word_and_holds_its_slot_until_then(system: System) -> None:
    gate = Gate(system)
    running = begin(system, "single.wanted", {"n": 1, "gate": str(gate)})
    wait_until("its body runs", lambda: starts(system, running, "hold"))
    following = begin(system, "single.wanted", {"n": 2, "gate": str(gate)})
    stands(system, following, lambda run: run["status"] == "queued" and run["why"], "the next one is queued")
    system.durable("run", "cancel", running)
    assert shown(system, running)["status"] == "cancelled"
    gate.open()
    assert output(system, following) == 2
    assert starts(system, running, "after") == [], "nothing of it starts after the cancel"
    # Whatever ended the body of the cancelled run: the slot was not given away before.
    bodies = spans(system, [running, following], "hold")
    assert len(bodies) == 2 and most_at_once(bodies) == 1


def test_cancelling_what_has_ended_changes_nothing(system: System) -> None:
    handle = system.client().start_sync("doubling", {"n": 1})
    handle.result_sync(60)
    with pytest.raises(AssertionError, match="completed already"):
        system.durable("run", "cancel", handle.run_id)
    assert shown(system, handle.run_id)["status"] == "completed"


def test_a_started_run_gives_its_result_and_the_same_id_starts_it_once(system: System) -> None:
    client = system.client()
    handle = client.start_sync("doubling", {"n": 21}, id="start-once")
    assert handle.result_sync(60) == {"event": "durable.start", "twice": 42}
    again = client.start_sync("doubling", {"n": 21}, id="start-once")
    assert (again.run_id, again.is_duplicate, handle.is_duplicate) == (handle.run_id, True, False)
    assert again.result_sync(5) == {"event": "durable.start", "twice": 42}
    other = client.start_sync("charging", {"failures": 0}, id="start-once")
    assert not other.is_duplicate and other.run_id != handle.run_id, "an id of a start belongs to its function"
    with pytest.raises(durable.RunFailed, match="the card has expired"):
        client.start_sync("checking", {}).result_sync(60)
    with pytest.raises(durable.Refused, match="no function"):
        client.start_sync("nobody", {})


def test_a_result_that_is_not_there_yet_and_one_that_will_never_be(system: System) -> None:
    handle = system.client().start_sync("sleeping_for_days", {})
    with pytest.raises(durable.ResultNotReady):
        handle.result_sync(0.3)
    system.durable("run", "cancel", handle.run_id)
    with pytest.raises(durable.RunCancelled):
        handle.result_sync(10)
