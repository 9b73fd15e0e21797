"""Who gets a slot: in order, all or none, and never above the limit."""

from __future__ import annotations

from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from engine.core.admit import Candidate, admit


def candidate(number: int, *keys: int, reserved: tuple[int, ...] = ()) -> Candidate:
    return Candidate(UUID(int=number), keys, frozenset(reserved))


def test_the_first_in_order_get_the_slots_and_the_others_park_at_the_full_key() -> None:
    admission = admit([candidate(1, 9), candidate(2, 9), candidate(3, 9)], {9: 2})
    assert admission.admitted == (UUID(int=1), UUID(int=2))
    assert admission.parked == ((UUID(int=3), 9),)


def test_a_run_takes_all_its_slots_or_none() -> None:
    admission = admit([candidate(1, 8, 9), candidate(2, 8)], {8: 1, 9: 0})
    assert admission.parked == ((UUID(int=1), 9),)
    assert admission.admitted == (UUID(int=2),)


def test_a_promoted_run_needs_no_free_slot_where_it_holds_one() -> None:
    admission = admit([candidate(1, 9, reserved=(9,))], {9: 0})
    assert admission.admitted == (UUID(int=1),) and admission.taken == ()


def test_a_key_whose_limit_was_taken_away_stops_nobody() -> None:
    assert len(admit([candidate(n, 9) for n in range(5)], {9: None}).admitted) == 5


@given(
    st.lists(st.sets(st.integers(0, 3), max_size=3), max_size=20),
    st.fixed_dictionaries({key: st.integers(-2, 4) for key in range(4)}),
)
def test_no_key_goes_above_its_limit_and_nobody_is_lost(needs: list[set[int]], free: dict[int, int]) -> None:
    candidates = [candidate(number, *sorted(keys)) for number, keys in enumerate(needs)]
    admission = admit(candidates, dict(free))
    for key in free:
        assert sum(taken == key for _, taken in admission.taken) <= max(free[key], 0)
    assert len(admission.admitted) + len(admission.parked) == len(candidates)
