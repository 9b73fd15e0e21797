"""What a run has to say to the engine: the ops that wait for the next message, those on their way, and the results that
the handler got before the engine knew of them.

Knows which ops are urgent; sends nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from durable.wire import AbandonOp, Op, SendEventsOp, StepErrorOp, StepOp


@dataclass(slots=True)
class Outbox:
    """`ops` in the order in which they arose. At most one message of a run is on its way: `in_flight`, its ops."""

    ops: list[Op] = field(default_factory=list)
    in_flight: list[Op] | None = None
    # Steps whose results the handler got before the engine's answer. No body starts while there is one.
    unacknowledged: set[str] = field(default_factory=set)
    # Something in it should reach the engine soon unless the invocation ends now: a wait, or the end of one.
    is_prompt: bool = False
    # The handler waits for the answer to something in it.
    is_urgent: bool = False

    def add_result(self, op: StepOp | StepErrorOp | SendEventsOp) -> None:
        """An op whose answer the handler waits for."""
        self.ops.append(op)
        self.is_urgent = True

    def add_wait(self, op: Op) -> None:
        self.ops.append(op)
        self.is_prompt = True

    def lone_result(self) -> StepOp | None:
        """The result that is all there is to say, with nothing on its way."""
        if len(self.ops) != 1 or self.in_flight is not None:
            return None
        op = self.ops[0]
        return op if type(op) is StepOp else None

    def note_delivered(self, op: StepOp) -> None:
        """The handler got this result, which is all there is to say, and waits for nothing in here any more."""
        self.unacknowledged.add(op.id)
        self.is_urgent = False

    @property
    def holds_delivered(self) -> bool:
        """Whether a result that the handler has waits for what the handler does next, to travel with it."""
        return bool(self.unacknowledged) and self.in_flight is None

    def drop(self, step_id: str) -> None:
        """Forget what a step that was given up would have told."""
        self.ops = [op for op in self.ops if getattr(op, "id", None) != step_id]
        self.is_urgent = any(
            isinstance(op, StepOp | StepErrorOp | SendEventsOp) and op.id not in self.unacknowledged for op in self.ops
        )

    def abandon(self, step_id: str) -> None:
        """Tell that a step was given up; soon, because a wait that stays open could take the event of a later one."""
        if self.ops and isinstance(self.ops[-1], AbandonOp):
            self.ops[-1] = AbandonOp(ids=[*self.ops[-1].ids, step_id])
        else:
            self.ops.append(AbandonOp(ids=[step_id]))
        self.is_prompt = True

    def take(self) -> list[Op]:
        """All that waits; it is on its way now."""
        ops, self.ops = self.ops, []
        self.is_prompt = self.is_urgent = False
        self.in_flight = ops
        return ops

    def unsent(self) -> Sequence[Op]:
        """All that the engine has not confirmed, for the end of the invocation."""
        return [*self.in_flight, *self.ops] if self.in_flight else self.ops
