"""What is wrong with a use of a step, in words that say how to write it instead."""

from durable.errors import AmbiguousStepId, CodeMismatch, StepUsageError


def ambiguous_step_id(given_id: str) -> AmbiguousStepId:
    return AmbiguousStepId(
        f"The step {given_id!r} was called while an earlier call of that id is open in another task or thread. "
        "Which of them gets which result would be chance. Give each an id of its own, such as "
        f'f"{given_id}-{{key}}".'
    )


def called_in_a_body(given_id: str) -> StepUsageError:
    return StepUsageError(
        f"Step {given_id!r} was called inside of the body of another step. Call steps from the handler, "
        "and let bodies return what the next step needs."
    )


def called_after_the_end(given_id: str) -> StepUsageError:
    return StepUsageError(
        f"Step {given_id!r} was called after its invocation had ended, by a task or thread that outlived the "
        "handler. Await everything that calls steps before the handler returns."
    )


def code_mismatch(step_id: str, known_kind: str, called_kind: str) -> CodeMismatch:
    return CodeMismatch(
        f"This run remembers {step_id!r} as a {known_kind}, and the code now calls it as a {called_kind}. Give "
        "the changed step a new id, or deploy the code that began this run until it has ended."
    )


def cancelled_from_outside(step_id: str) -> StepUsageError:
    return StepUsageError(
        f"The await of step {step_id!r} was cancelled by something that is no step, such as asyncio.timeout() "
        "or trio.move_on_after(). That clock is not remembered. Use timeout= of the step, or race it with "
        "step.sleep() and cancel the loser."
    )
