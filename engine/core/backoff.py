"""How long a failed step or function waits before its next try. The random part comes from the caller."""

from __future__ import annotations

from protocol.ops import Backoff


def backoff_seconds(policy: Backoff, failures: int, jitter: float) -> float:
    """The wait after the `failures`-th failure in a row; `jitter` is a random number in [0, 1).

    `initial × factor^(failures-1)`, at most `max`; with full jitter anything between nothing and that, so that runs which failed
    together do not return together.
    """
    # 64 doublings pass every maximum; the bound keeps the power a finite float.
    exponent = min(failures - 1, 64)
    delay = min(policy.initial_seconds * policy.factor**exponent, policy.max_seconds)
    return delay * jitter if policy.jitter else delay
