"""The delay before the next try."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.core.backoff import backoff_seconds
from protocol.ops import Backoff


def test_the_delay_doubles_up_to_its_maximum() -> None:
    policy = Backoff(1, 2, 10, jitter=False)
    assert [backoff_seconds(policy, failures, 0.9) for failures in range(1, 7)] == [1, 2, 4, 8, 10, 10]


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_with_jitter_it_is_between_nothing_and_the_whole_delay(failures: int, jitter: float) -> None:
    assert 0 <= backoff_seconds(Backoff(), failures, jitter) <= 3600
