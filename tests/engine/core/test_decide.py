"""The rules of attempts, retries, abandonment and of the next state, as a table: no clock, no database."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec
import pytest
from msgspec import Raw

from engine.core.decide import decide
from engine.core.outcome import CallDied, HandedBack, Interrupted, Outcome, Reported, Undelivered
from engine.core.run import EarlierEvent, LiveRun, PendingRetry, Recorded, RecordedStep
from engine.core.transition import Counters, Delayed, Ended, Parked, Ready, Refused, Stay, Transition, Waiting
from protocol.manifest import FunctionConfig, Trigger
from protocol.ops import (
    Abandon,
    Backoff,
    Complete,
    EventIn,
    Fail,
    Op,
    SendEvents,
    Sleep,
    Step,
    StepError,
    WaitForEvent,
    Yield,
)

NOW = datetime(2026, 1, 31, 9, 0, tzinfo=UTC)
RUN_ID = UUID("01990a3c-7d1e-7c3a-9b52-6f1f0e7f9a10")
CONFIG = FunctionConfig("f", [Trigger("e")], retries=2, backoff=Backoff(10, 2, 60, jitter=False))
ERROR = Raw(b'{"name":"ValueError","message":"no"}')


def run(**changed: Any) -> LiveRun:
    fields: dict[str, Any] = {
        "run_id": RUN_ID, "workspace_id": 1, "function_id": 1, "state": "leased", "generation": 3, "position": 0,
    }  # fmt: skip
    return LiveRun(**{**fields, **changed})


def step(step_id: str, data: bytes = b"1", **changed: Any) -> Step:
    return Step(step_id, changed.get("attempt", 1), NOW, 0.5, changed.get("seen", 0), Raw(data))


def step_error(step_id: str, *, retriable: bool = True, attempt: int = 1, **options: Any) -> StepError:
    return StepError(step_id, ERROR, retriable, attempt, NOW, 0.5, 0, **options)


def decided(
    *ops: Op, known: int = 0, ends: bool = True, recorded: Recorded | None = None, on: LiveRun | None = None
) -> Transition:
    transition = decide(on or run(), CONFIG, recorded or Recorded(), Reported(ops, known, ends), jitter=0.5)
    assert isinstance(transition, Transition), transition
    return transition


def refused(*ops: Op, recorded: Recorded | None = None, on: LiveRun | None = None) -> Refused:
    refusal = decide(on or run(), CONFIG, recorded or Recorded(), Reported(ops, 0, False), jitter=0.5)
    assert isinstance(refusal, Refused)
    return refusal


def test_complete_ends_the_run_with_its_output() -> None:
    assert decided(Complete(Raw(b'{"a":1}'))).next == Ended("completed", output='{"a":1}')


def test_a_checkpoint_leaves_the_invocation_going() -> None:
    transition = decided(step("a"), ends=False)
    assert transition.next == Stay()
    assert [memo.step_id for memo in transition.memo] == ["a"]
    assert transition.invocation_outcome is None


@pytest.mark.parametrize(
    ("ops", "recorded", "known", "position", "expected"),
    [
        ((Yield(),), Recorded(), 0, 0, Ready()),
        ((), Recorded(waits={"w": "sleep"}), 0, 1, Ready()),
        ((), Recorded(waits={"w": "sleep"}), 1, 1, Waiting()),
        ((Sleep("s", seconds=5),), Recorded(), 0, 0, Waiting()),
        ((step("a"), Sleep("s", seconds=5)), Recorded(), 0, 0, Waiting()),
        ((), Recorded(retries={"a": PendingRetry(2, 7.0)}), 0, 0, Delayed(7.0)),
        ((), Recorded(retries={"a": PendingRetry(2, 0.0)}), 0, 0, Ready()),
        ((), Recorded(retries={"a": PendingRetry(2, 7.0)}, waits={"w": "sleep"}), 0, 0, Delayed(7.0)),
        ((step_error("a"),), Recorded(), 0, 0, Delayed(10.0)),
        ((step_error("a", retriable=False),), Recorded(), 0, 0, Ready()),
    ],
)  # fmt: skip
def test_the_next_state_at_the_end_of_an_invocation(
    ops: tuple[Op, ...], recorded: Recorded, known: int, position: int, expected: object
) -> None:
    assert decided(*ops, known=known, recorded=recorded, on=run(position=position)).next == expected


def test_an_end_without_anything_planned_is_a_failed_attempt_with_the_reason() -> None:
    transition = decided()
    assert transition.next == Delayed(10.0)
    assert transition.counters.attempt == 2
    assert transition.invocation_outcome == "nothing_planned"


def test_a_failing_step_is_retried_by_the_policy_of_its_function_and_then_memoized() -> None:
    first = decided(step_error("a"), ends=False)
    assert first.retries == (("a", 2, 10.0),) and not first.memo
    second = decided(step_error("a", attempt=2), ends=False, recorded=Recorded(retries={"a": PendingRetry(2, 0)}))
    assert second.retries == (("a", 3, 20.0),)
    third = decided(step_error("a", attempt=3), ends=False, recorded=Recorded(retries={"a": PendingRetry(3, 0)}))
    assert third.memo[0].error == bytes(ERROR).decode()
    assert third.dropped_retries == ("a",)
    assert third.memo[0].attempt == 3


def test_the_engine_counts_attempts_itself() -> None:
    """An app that always says `attempt: 1` does not get retries without end."""
    transition = decided(step_error("a", attempt=1), ends=False, recorded=Recorded(retries={"a": PendingRetry(3, 0)}))
    assert transition.memo[0].attempt == 3


def test_a_step_may_bring_its_own_retries_and_delay() -> None:
    assert decided(step_error("a", retries=0), ends=False).memo
    assert decided(step_error("a", retry_after_seconds=77.0), ends=False).retries == (("a", 2, 77.0),)
    own = Backoff(3, 1, 3, jitter=False)
    assert decided(step_error("a", backoff=own), ends=False).retries == (("a", 2, 3.0),)


def test_the_same_failure_reported_twice_is_counted_once() -> None:
    recorded = Recorded(retries={"a": PendingRetry(2, 4.0)}, failed_attempts=frozenset({("a", 1)}))
    again = decided(step_error("a", attempt=1), ends=False, recorded=recorded)
    assert not again.failed_attempts and not again.retries
    assert again.answered_retries == (("a", 2, 4.0),)


def test_a_committed_result_is_never_replaced() -> None:
    recorded = Recorded(steps={"a": RecordedStep("step", 1)})
    assert not decided(step("a", b"2"), step_error("a"), ends=False, recorded=recorded, on=run(position=1)).memo


def test_the_second_result_of_one_message_is_ignored() -> None:
    assert [memo.data for memo in decided(step("a", b"1"), step("a", b"2"), ends=False).memo] == ["1"]


def test_a_reference_that_nobody_resolved_is_refused_unless_the_step_has_its_entry_already() -> None:
    by_ref = Step("a", 1, NOW, 0.5, 0, ref="v:1")
    refusal = refused(by_ref)
    assert refusal.code == "unknown_ref" and "'a'" in refusal.message and refusal.hint
    again = decided(by_ref, ends=False, recorded=Recorded(steps={"a": RecordedStep("step", 1)}))
    assert again.memo == ()


@pytest.mark.parametrize(
    "recorded",
    [Recorded(steps={"a": RecordedStep("sleep", 1)}), Recorded(waits={"a": "wait_for_event"})],
)
def test_a_step_that_changed_its_kind_is_refused_by_name(recorded: Recorded) -> None:
    refusal = refused(step("a"), recorded=recorded)
    assert refusal.code == "code_mismatch" and "'a'" in refusal.message


def test_a_wait_that_is_registered_keeps_its_first_deadline() -> None:
    transition = decided(Sleep("s", seconds=99), recorded=Recorded(waits={"s": "sleep"}))
    assert not transition.waits and transition.next == Waiting()


def test_waits_come_before_sends_of_the_same_message() -> None:
    transition = decided(SendEvents("tell", [EventIn("e", Raw(b"1"))]), WaitForEvent("hear", "e", 60.0), ends=False)
    assert [wait.step_id for wait in transition.waits] == ["hear"]
    assert [op.id for op in transition.sends] == ["tell"]


def test_sent_events_have_the_same_ids_at_every_try() -> None:
    send = SendEvents("tell", [EventIn("e", Raw(b"1")), EventIn("e", Raw(b"2"), id="mine")])
    first, again = decided(send, ends=False).memo[0].data, decided(send, ends=False).memo[0].data
    assert first == again and msgspec.json.decode(first or "")["ids"][1] == "mine"


def test_an_earlier_event_ends_its_wait_at_once_and_is_delivered() -> None:
    event_id = UUID(int=7)
    recorded = Recorded(earlier_events={"w": EarlierEvent(event_id, '{"id":"x"}')})
    transition = decided(WaitForEvent("w", "e", 60.0), recorded=recorded)
    assert transition.memo[0].event_id == event_id and not transition.waits
    assert transition.next == Ready()


def test_abandoned_steps_lose_their_waits_and_late_results_are_told() -> None:
    transition = decided(Abandon(["w", "b"]), ends=False, recorded=Recorded(waits={"w": "wait_for_event"}))
    assert transition.dropped_waits == ("w",)
    assert [(memo.step_id, memo.kind, memo.is_abandoned) for memo in transition.memo] == [
        ("w", "wait_for_event", True),
        ("b", "step", True),
    ]
    late = decided(step("b"), ends=False, recorded=Recorded(steps={"b": RecordedStep("step", 2, True)}))
    assert late.answered_abandoned == ("b",) and not late.memo


def test_an_error_of_the_function_is_retried_and_then_final() -> None:
    fail = Fail(ERROR, retriable=True)
    assert decided(fail).next == Delayed(10.0)
    assert decided(fail, on=run(attempt=2)).next == Delayed(20.0)
    assert isinstance(decided(fail, on=run(attempt=3)).next, Ended)
    assert isinstance(decided(Fail(ERROR, retriable=False)).next, Ended)
    assert decided(Fail(ERROR, True, 33.0)).next == Delayed(33.0)


def test_code_that_does_not_fit_the_history_spends_no_retry_and_is_final_after_an_hour() -> None:
    fail = Fail(Raw(b'{"name":"CodeMismatch","message":"a","code":"code_mismatch"}'), retriable=True)
    waited, tired = 0.0, run(attempt=3)
    for mismatches in range(1000):
        transition = decided(fail, on=run(attempt=3, mismatches=mismatches))
        if isinstance(transition.next, Ended):
            break
        assert isinstance(transition.next, Delayed) and transition.next.seconds <= 60
        assert transition.counters == Counters(3, 0, 0, mismatches + 1)
        waited += transition.next.seconds
    assert 3500 < waited <= 3600
    assert decided(step("a"), ends=False, on=tired).counters.mismatches == 0


def test_a_commit_sets_the_counts_of_failures_back() -> None:
    tired = run(attempt=3, interruptions=5, undelivered=4)
    assert decided(step("a"), ends=False, on=tired).counters == Counters(1, 0, 0)
    assert decided(ends=False, on=tired).counters == Counters(3, 5, 4)


def outcome(what: Outcome, **changed: Any) -> Transition:
    transition = decide(run(**changed), CONFIG, Recorded(), what, jitter=0.5)
    assert isinstance(transition, Transition)
    return transition


def test_the_death_of_a_call_is_an_attempt() -> None:
    assert outcome(CallDied("connection_lost", "x")).counters.attempt == 2
    assert isinstance(outcome(CallDied("connection_lost", "x"), attempt=3).next, Ended)


def test_interruptions_spend_no_retries_and_end_in_quarantine() -> None:
    first = outcome(Interrupted("lease_lost"))
    assert first.next == Ready() and first.counters == Counters(1, 1, 0)
    assert outcome(Interrupted("lease_lost"), interruptions=10).next == Parked("quarantine")


def test_what_was_not_delivered_holds_the_lane_and_counts_nothing() -> None:
    transition = outcome(Undelivered("app_unreachable", "refused"))
    assert transition.next == Ready() and transition.counters == Counters(1, 0, 0)
    assert transition.lane_hold is not None and transition.lane_hold.whole_app


def test_a_run_that_alone_can_not_be_delivered_is_held() -> None:
    transition = outcome(Undelivered("unknown_function", "no", others_succeed=True), undelivered=9)
    assert transition.next == Parked("quarantine")


def test_draining_counts_nothing() -> None:
    assert outcome(HandedBack(), attempt=2, interruptions=4).counters == Counters(2, 4, 0)


def test_too_many_steps_are_refused_with_what_to_do() -> None:
    refusal = refused(step("a"), on=run(position=10_000))
    assert refusal.code == "too_many_steps" and "another function" in refusal.hint


def test_too_much_state_is_refused_with_its_size() -> None:
    refusal = refused(step("a", b'"' + b"x" * 1000 + b'"'), on=run(memo_bytes=64 * 1024 * 1024 - 10))
    assert refusal.code == "run_state_too_large" and "64 MiB" in refusal.message
