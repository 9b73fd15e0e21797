"""Named places where a test can end the process, as a power cut would: `DURABLE_CRASH_AT=name:n` exits at the n-th passage.

Off in normal use: without the variable a passage costs one comparison.
"""

from __future__ import annotations

import os

CRASH_POINTS = (
    "before_commit",
    "after_commit",
    "claim_before_commit",
    "claimed_before_call",
    "handed_over_before_call",
    "during_call",
    "between_lines",
    "lines_read_before_apply",
    "reply_before_apply",
    "applied_before_answer",
    "checkpoint_before_apply",
    "checkpoint_applied_before_answer",
    "value_stored_before_answer",
    "value_used_before_commit",
    "alive_renewed_before_answer",
    "events_before_commit",
    "events_committed_before_answer",
    "timer_before_fire",
    "timer_fired",
    "reclaim_before_commit",
    "drain_started",
)

_name, _, _count = os.environ.get("DURABLE_CRASH_AT", "").partition(":")
_passages_left = int(_count) if _count.isdigit() else 1

if _name and _name not in CRASH_POINTS:
    raise SystemExit(f"DURABLE_CRASH_AT names no crash point: {_name!r}. There are: {', '.join(CRASH_POINTS)}")


def crash_point(name: str) -> None:
    """End the process here, without any clean-up, when this passage is the one that was asked for."""
    global _passages_left
    if name != _name:
        return
    _passages_left -= 1
    if _passages_left == 0:
        os._exit(137)
