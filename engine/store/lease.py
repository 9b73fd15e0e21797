"""A lease: the right of an engine to execute a run for a while."""

from __future__ import annotations

from uuid import UUID

import msgspec


class Lease(msgspec.Struct, frozen=True):
    """The right of this engine to execute a run until its lease ends. `interruptions`: invocations of it in a row that broke off."""

    run_id: UUID
    workspace_id: int
    function_id: int
    generation: int
    position: int
    attempt: int
    interruptions: int = 0
