"""One call to an app and the invocations that travel in it: gives each line of the reply to its invocation.

It waits for nothing and writes nothing; `run_call` is the task around it. When the last invocation has left, the call is over; while
one is there, it goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import structlog
import trio

from engine.core.outcome import CallDied, Interrupted, Outcome, Reported, Undelivered
from engine.nursery.inflight import Inflight
from engine.store.crash_points import crash_point
from engine.transport.app_client import CallResult, Died, Finished, Line, NotDelivered
from protocol.calls import Ended, Started
from protocol.ops import UnknownFunction

log = structlog.get_logger(__name__)

# How long an app may take to close its reply after the last end; then the connection is not kept.
CLOSING_SECONDS_MAX = 1.0
# Nobody waits for a second end of an invocation, or for lines after it; an app that goes on and on with them is cut off.
USELESS_LINES_MAX = 1_000


class Call:
    """`carried` are those that it takes along, `open_runs` those of them that have neither ended nor left."""

    def __init__(self, inflights: Sequence[Inflight]) -> None:
        self.inflights = tuple(inflights)
        self.carried = {str(inflight.run_id): inflight for inflight in inflights if inflight.outcome is None}
        self.open_runs = dict(self.carried)
        self.scope = trio.CancelScope()
        self.answered = trio.Event()
        self.is_answered = False
        self.sent_at = trio.current_time()
        # Called with an invocation at the first line that shows that the app has taken it.
        self.on_taken: Callable[[Inflight], None] = lambda inflight: None
        self._broke: Died | None = None
        self._useless_lines = 0

    @property
    def is_shared(self) -> bool:
        return len(self.carried) > 1

    def on_answer(self) -> None:
        """The first sign of a reply came."""
        self.is_answered = True
        self.answered.set()

    def on_line(self, line: Line) -> None:
        """A line of the reply, verified."""
        inflight = self.carried.get(line.run_id)
        if inflight is None:
            self._break(Died("foreign_reply", f"The app answered for run {line.run_id}, which this call did not carry."))
        elif line.run_id not in self.open_runs:
            self._useless_lines += 1
            if not self.open_runs:
                self.scope.cancel()
            elif self._useless_lines > USELESS_LINES_MAX:
                self._break(Died("bad_reply", "The app says more and more of invocations that have ended."))
        elif line.generation != inflight.handover.lease.generation:
            words = f"The app answered for generation {line.generation} of run {line.run_id}, which this call did not carry."
            self._settle(inflight, CallDied("foreign_reply", words))
        elif isinstance(line, Started):
            if not inflight.has_started:
                self._note_taken(inflight)
                inflight.has_started = True
                crash_point("during_call")
                inflight.news()
        elif isinstance(line, Ended):
            self._note_taken(inflight)
            self._settle(inflight, _outcome_of(line))
        else:
            words = f"The app's reply breaks the protocol: {line.error.message}"
            self._settle(inflight, CallDied(line.error.code, words))
        if self.is_shared and self.open_runs:
            crash_point("between_lines")

    def leave(self, inflight: Inflight) -> None:
        """The invocation no longer waits: it has ended, or was ended here. Nobody else's call is closed by it."""
        if self.open_runs.pop(str(inflight.run_id), None) is not None and not self.open_runs:
            self.scope.cancel()

    def over(self, result: CallResult | None) -> CallResult | None:
        """The exchange has come to this; those who have not ended are told. What it was in the end."""
        result = self._broke or result
        for inflight in list(self.open_runs.values()):
            inflight.settle(self._outcome_without_end(result))
        return result

    def settle_all(self, outcome: Outcome) -> None:
        """Nothing was sent, for the same reason for all."""
        for inflight in list(self.open_runs.values()):
            inflight.settle(outcome)

    def _note_taken(self, inflight: Inflight) -> None:
        if not inflight.has_started:
            self.on_taken(inflight)

    def _settle(self, inflight: Inflight, outcome: Outcome) -> None:
        del self.open_runs[str(inflight.run_id)]
        inflight.settle(outcome)
        if not self.open_runs:
            if self.is_shared:
                crash_point("lines_read_before_apply")
            if isinstance(outcome, CallDied):
                self.scope.cancel()
            self.scope.deadline = trio.current_time() + CLOSING_SECONDS_MAX

    def _break(self, died: Died) -> None:
        self._broke = died
        self.scope.cancel()

    def _outcome_without_end(self, result: CallResult | None) -> Outcome:
        if isinstance(result, NotDelivered):
            return Undelivered("app_unreachable", result.detail, result.retry_after_seconds)
        if self.is_shared or result is None:
            # Whose doing it was can not be told; alone in its next call, the one that breaks them is found.
            return Interrupted("shared_call_died")
        if isinstance(result, Finished):
            return CallDied("no_end", "The app closed the call without saying how the invocation ended.")
        return CallDied(result.code, result.message)


def _outcome_of(line: Ended) -> Outcome:
    if any(isinstance(op, UnknownFunction) for op in line.ops):
        return Undelivered("unknown_function", "The app that answers has no such function.", others_succeed=True)
    return Reported(tuple(line.ops), line.known, ends=True)
