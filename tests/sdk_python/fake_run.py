"""A run as the small engine of the SDK's tests keeps it: in memory, its memo as JSON."""

from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]


@dataclass
class FakeRun:
    """A run. `is_leased`: an invocation is open. `calls` counts invocations, `ends` says which way their ends came."""

    id: str
    function: str
    event: Json
    status: str = "queued"
    output: Any = None
    error: Any = None
    generation: int = 0
    attempt: int = 1
    is_leased: bool = False
    is_ready: bool = True
    memo: list[Json] = field(default_factory=list)
    retries: dict[str, tuple[int, float]] = field(default_factory=dict)
    waits: dict[str, Json] = field(default_factory=dict)
    ends: list[str] = field(default_factory=list)

    @property
    def has_ended(self) -> bool:
        return self.status in ("completed", "failed", "cancelled")

    def find(self, step_id: str) -> Json | None:
        return next((entry for entry in self.memo if entry["id"] == step_id), None)

    def remember(self, step_id: str, kind: str, **outcome: Any) -> None:
        if self.find(step_id) is None:
            self.memo.append({"id": step_id, "kind": kind, "position": len(self.memo) + 1, **outcome})
            self.waits.pop(step_id, None)
            self.retries.pop(step_id, None)
            self.attempt = 1
