"""The app's own clock of the lease: when a body may start, how long a checkpoint is tried, when news are asked for."""

import pytest

from durable.lease import LEASE_MARGIN_SECONDS, NEWS_SECONDS_MIN, Lease


def test_a_body_may_start_until_the_margin_before_the_end() -> None:
    lease = Lease(received_at=100.0, seconds=30.0)
    assert lease.allows_start(130 - LEASE_MARGIN_SECONDS - 0.001)
    assert not lease.allows_start(130 - LEASE_MARGIN_SECONDS)
    assert not lease.allows_start(1_000)


def test_an_ok_allows_the_next_start_even_when_the_lease_is_short_but_not_the_one_after() -> None:
    lease = Lease(received_at=100.0, seconds=30.0)
    lease.renew(sent_at=200.0, seconds=1.0)
    assert lease.allows_start(200.5)
    lease.note_start()
    assert not lease.allows_start(200.5)


def test_a_renewed_lease_counts_from_the_sending_not_from_the_answer() -> None:
    lease = Lease(received_at=100.0, seconds=30.0)
    lease.renew(sent_at=120.0, seconds=30.0)
    lease.note_start()
    assert lease.allows_start(147.9) and not lease.allows_start(148.1)


def test_an_answer_without_a_length_keeps_the_end() -> None:
    lease = Lease(received_at=100.0, seconds=30.0)
    lease.renew(sent_at=120.0, seconds=None)
    lease.note_start()
    assert not lease.allows_start(129.0)


@pytest.mark.parametrize(("now", "deadline"), [(100.0, 130.0), (110.0, 140.0), (500.0, 530.0)])
def test_a_checkpoint_is_tried_for_the_length_of_a_lease_also_after_a_long_body(now: float, deadline: float) -> None:
    assert Lease(received_at=100.0, seconds=30.0).checkpoint_deadline(now) == deadline


def test_news_are_asked_for_at_the_end_of_a_wait_and_every_third_of_the_lease() -> None:
    lease = Lease(received_at=100.0, seconds=30.0)
    assert lease.news_due_at == 110.0
    lease.note_wait(100.0, 500.0)
    lease.note_wait(100.0, 3.0)
    assert lease.news_due_at == 103.0 + NEWS_SECONDS_MIN
    lease.note_asked(104.0)
    assert lease.news_due_at == 114.0
