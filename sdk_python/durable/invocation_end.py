"""The last ops of an invocation, and the errors with which the SDK itself ends one.

Pure: it decides from what the execution found, and changes nothing.
"""

from collections.abc import Sequence, Set

from msgspec import UNSET, Raw

from durable.error_words import error_words, fail_op
from durable.errors import StepUsageError
from durable.json_text import encode_result
from durable.runtime import Outcome
from durable.wire import CompleteOp, EntryAnswer, FailOp, Op, StepErrorOp, StepOp, YieldOp


class ParkSwallowed(StepUsageError):
    """The handler caught what unwinds it while a step waits, and went on or ended. Catch Exception, not BaseException,
    around steps.
    """

    code: str = "park_swallowed"

    def __init__(self) -> None:
        super().__init__(
            "The handler swallowed durable.Parked (or the cancellation) with which an invocation ends while a step waits. "
            "Catch Exception rather than BaseException around steps, or raise again what you caught."
        )


def last_ops(
    unsent: Sequence[Op], fault: BaseException | None, outcome: Outcome | None, delivered: Set[str], *, is_cut_off: bool
) -> list[Op]:
    """What ends the invocation. `delivered`: the steps whose results the handler got though they are unsent."""
    if fault is not None:
        return ops_of_fault(unsent, fault)
    if outcome is not None:
        return ops_of_outcome(unsent, outcome, delivered)
    return ops_of_parking(unsent, is_cut_off=is_cut_off)


def ops_of_fault(unsent: Sequence[Op], fault: BaseException) -> list[Op]:
    """The function fails. Results that were not sent yet go first; waits are planned anew by the next try."""
    return [*(op for op in unsent if isinstance(op, StepOp | StepErrorOp)), fail_op(fault)]


def ops_of_outcome(unsent: Sequence[Op], outcome: Outcome, delivered: Set[str]) -> list[Op]:
    """The handler has ended by itself."""
    if outcome.error is not None:
        return ops_of_fault(unsent, outcome.error)
    try:
        complete = CompleteOp(output=Raw(encode_result(outcome.value, where="what the function returned")))
        # What else is unsent belongs to steps that nobody waits for: `complete` gives them up.
        return [*(op for op in unsent if isinstance(op, StepOp) and op.id in delivered), complete]
    except Exception as error:
        return ops_of_fault(unsent, error)


def ops_of_parking(unsent: Sequence[Op], *, is_cut_off: bool) -> list[Op]:
    """The handler waits. Cut off from the engine, the run is to be handed over again with what the reply brings."""
    return [*unsent, YieldOp()] if is_cut_off else list(unsent)


def refusal_op(answer: EntryAnswer) -> FailOp:
    """The function fails with the words of a refused entry."""
    if answer.error is UNSET:
        code, message = "refused", "The engine refused a result without saying why."
    else:
        code = answer.error.code
        message = f"{answer.error.message} {answer.error.hint}" if answer.error.hint else answer.error.message
    return FailOp(error=error_words(None, name="Refused", message=message, code=code), retriable=code == "code_mismatch")
