"""The room that an engine has for runs which it takes over in the transaction that creates them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID


@dataclass(frozen=True, slots=True)
class HandoverRoom:
    """`places` runs may be leased to this engine for `lease_seconds`, none of them of `full_workspaces`."""

    engine_id: UUID
    lease_seconds: float
    places: int
    full_workspaces: Sequence[int] = ()
