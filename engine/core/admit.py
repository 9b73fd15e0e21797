"""Which of the runs that stand at the head of their lanes may be leased now, and at which full key the others park.

Pure: the store gives the keys as it locked them, and writes what comes out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Candidate:
    """A ready run: the keys of which it must hold a slot, and those of which it holds one already (it was promoted)."""

    run_id: UUID
    limit_key_ids: tuple[int, ...]
    reserved_key_ids: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Admission:
    """`admitted` runs with the slots that they newly take; `parked` runs with the key that was full."""

    admitted: tuple[UUID, ...]
    taken: tuple[tuple[UUID, int], ...]
    parked: tuple[tuple[UUID, int], ...]


def admit(candidates: Sequence[Candidate], free_slots: dict[int, int | None]) -> Admission:
    """Admit candidates in their order. `free_slots` per key; None where nothing is limited any more."""
    free = dict(free_slots)
    admitted: list[UUID] = []
    taken: list[tuple[UUID, int]] = []
    parked: list[tuple[UUID, int]] = []
    for candidate in candidates:
        needed = [key for key in candidate.limit_key_ids if key not in candidate.reserved_key_ids]
        full = next((key for key in needed if _is_full(free.get(key))), None)
        if full is not None:
            parked.append((candidate.run_id, full))
            continue
        for key in needed:
            slots = free.get(key)
            if slots is not None:
                free[key] = slots - 1
            taken.append((candidate.run_id, key))
        admitted.append(candidate.run_id)
    return Admission(tuple(admitted), tuple(taken), tuple(parked))


def _is_full(free: int | None) -> bool:
    return free is not None and free <= 0
