"""How much one app is given at a time: a cap that grows with what it takes and halves when it does not, and a circuit that opens when
nothing gets through.

It is memory of this process alone. What all engines must know of an app that is away stands in `lane_hold`.
"""

from __future__ import annotations

from dataclasses import dataclass

CAP_AT_FIRST = 32
# Calls that were sent after one another and never got an answer: then the app is away, and one call at a time asks whether it is back.
FAILURES_MAX = 3
PROBE_SECONDS_MIN = 0.25
PROBE_SECONDS_MAX = 30.0
# An invocation that is taken later than this does not ask for more of its kind; a call of several without a first byte by then is held
# back by something that waits for the end of the reply.
PROMPT_SECONDS = 5.0
SINGLE_SECONDS = 300.0


@dataclass(eq=False, slots=True)
class AppPace:
    """One workspace. `runs` and `size_bytes` are what is under way now, `untaken` of these runs those of which the app has said nothing
    yet; instants are Trio's.
    """

    cap_max: int
    bytes_max: int
    cap: float = CAP_AT_FIRST
    runs: int = 0
    untaken: int = 0
    size_bytes: int = 0
    failures: int = 0
    failed_at: float = float("-inf")
    asks_again_at: float = float("-inf")
    is_probing: bool = False
    single_until: float = float("-inf")

    def __post_init__(self) -> None:
        self.cap = min(self.cap, self.cap_max)

    @property
    def is_away(self) -> bool:
        return self.failures >= FAILURES_MAX

    @property
    def is_troubled(self) -> bool:
        """Whether it is held to its cap strictly. A healthy app may get the rest of a claim beyond it."""
        return self.is_away or self.cap < min(CAP_AT_FIRST, self.cap_max)

    def room(self, now: float) -> int:
        """How many more invocations it may be given."""
        if self.is_away:
            return 1 if now >= self.asks_again_at and not self.is_probing else 0
        if self.size_bytes >= self.bytes_max:
            return 0
        if self.untaken == 0 and self.runs < self.cap_max:
            # What it has taken may go on for hours: a cap that fell below that would shut it out for as long.
            return max(int(self.cap) - self.runs, 1)
        return max(int(self.cap) - self.runs, 0)

    def took(self, sent_at: float, now: float) -> None:
        """An invocation of a call that was sent then has been taken."""
        self.failures = 0
        self.is_probing = False
        if now - sent_at <= PROMPT_SECONDS:
            self.cap = min(self.cap + 1, self.cap_max)

    def failed(self, sent_at: float, now: float, *, is_answered: bool) -> None:
        """A call that was sent then broke, timed out, or was not taken. Calls that were under way together count once."""
        if sent_at < self.failed_at:
            return
        self.failed_at = now
        self.cap = max(self.cap / 2, 1)
        self.is_probing = False
        self.failures = 0 if is_answered else self.failures + 1
        if self.is_away:
            pause_seconds = min(PROBE_SECONDS_MIN * 2 ** min(self.failures - FAILURES_MAX, 10), PROBE_SECONDS_MAX)
            self.asks_again_at = now + pause_seconds

    def gets_single_calls(self, now: float) -> bool:
        return now < self.single_until
