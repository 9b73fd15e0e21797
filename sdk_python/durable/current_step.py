"""The step whose body is running here: run, attempt and the idempotency key, read with `durable.current_step()`.

Owns the context variable that says so. It is set in the body's own task or thread and in nothing else, so
parallel bodies never see each other's.
"""

from contextvars import ContextVar
from dataclasses import dataclass

from durable.errors import StepUsageError


@dataclass(frozen=True, slots=True)
class CurrentStep:
    """What a body may know of itself. `attempt` counts the tries of this step from 1.

    `idempotency_key` is the same for every try of the step: hand it to the service you call, so that a body
    that starts twice acts once.
    """

    run_id: str
    step_id: str
    attempt: int
    generation: int

    @property
    def idempotency_key(self) -> str:
        return f"{self.run_id}/{self.step_id}"


def current_step() -> CurrentStep:
    """The step whose body calls this.

        async def charge(amount: int) -> str:
            key = durable.current_step().idempotency_key
            return await bank.charge(amount, idempotency_key=key)

    Raises `StepUsageError` outside of a step's body.
    """
    step = running_step.get()
    if step is None:
        raise StepUsageError(
            "current_step() was called outside of a step's body. Call it inside of the function that you give to step.run()."
        )
    return step


running_step: ContextVar[CurrentStep | None] = ContextVar("durable_running_step", default=None)
