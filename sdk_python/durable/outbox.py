"""The ops of a run that wait for the next message, in the order in which they arose.

Knows which of them are urgent; sends nothing.
"""

from dataclasses import dataclass, field

from durable.wire import AbandonOp, Op, SendEventsOp, StepErrorOp, StepOp


@dataclass(slots=True)
class Outbox:
    """`ops` in the order in which they arose."""

    ops: list[Op] = field(default_factory=list)
    # Something in it should reach the engine soon unless the invocation ends now: a wait, or the end of one.
    is_prompt: bool = False

    @property
    def is_urgent(self) -> bool:
        """Whether the handler waits for the answer to something in it."""
        return any(isinstance(op, StepOp | StepErrorOp | SendEventsOp) for op in self.ops)

    def drop(self, step_id: str) -> None:
        """Forget what a step that was given up would have told."""
        self.ops = [op for op in self.ops if getattr(op, "id", None) != step_id]

    def abandon(self, step_id: str) -> None:
        if self.ops and isinstance(self.ops[-1], AbandonOp):
            self.ops[-1] = AbandonOp(ids=[*self.ops[-1].ids, step_id])
        else:
            self.ops.append(AbandonOp(ids=[step_id]))

    def take(self) -> list[Op]:
        ops, self.ops = self.ops, []
        self.is_prompt = False
        return ops
