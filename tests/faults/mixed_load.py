"""The events of a mixed load: every shape of function that the witness app has, in turn, and the approvals that its waits need."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

NAMES = (
    "three.wanted",
    "limited.wanted",
    "plain.wanted",
    "nap.wanted",
    "approval.wanted",
    "chain.wanted",
    "flaky.wanted",
    "big.wanted",
)
# More than travels in place.
BIG_BYTES = 80_000


def make_mixed(seed: int, *, body_seconds_max: float = 0.05) -> Callable[[int], tuple[str, Any]]:
    """`make_event` of a Load: a few events in, each approval is given."""
    chance = random.Random(seed)

    def make_event(number: int) -> tuple[str, Any]:
        asked = number - 3
        if number % 9 == 8:
            return "approval.given", {"n": _last_asked(asked), "text": "ja – oui – да"}
        name = NAMES[number % 9]
        data = {"n": number, "tenant": "ab"[number % 2], "body_seconds": round(chance.uniform(0, body_seconds_max), 3)}
        return name, {**data, "timeout_seconds": 4, "bytes": BIG_BYTES}

    return make_event


def _last_asked(number: int) -> int:
    """The number of the last `approval.wanted` at or before `number`."""
    while number % 9 != 4:
        number -= 1
    return number
