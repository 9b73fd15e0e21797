"""Describes an exception for the wire: name, message, stack and code in at most 64 KiB, and whether to try again.

Owns the shortening. Never raises, whatever the exception's own methods do.
"""

import json
import traceback
from typing import Any, Final

from msgspec import Raw

from durable.errors import AmbiguousStepId, NonRetriableError, RetryAfterError, StepError, StepUsageError
from durable.json_text import TypeRefused, ValueRefused
from durable.wire import FailOp

ERROR_BYTES_MAX: Final = 64 << 10
NAME_CHARACTERS_MAX: Final = 200
MESSAGE_CHARACTERS_MAX: Final = 4_000
STACK_CHARACTERS_MAX: Final = 6_000
"""In JSON a character takes at most 6 bytes here (ASCII only): 10,200 of them stay below ERROR_BYTES_MAX."""


def error_words(
    error: BaseException | None, *, name: str | None = None, message: str | None = None, code: str | None = None
) -> Raw:
    """The `error` payload for an exception, or for the given words."""
    if error is not None:
        error = _only_leaf(error)
        name = error.name if isinstance(error, StepError) else type(error).__name__
        message = error.message if isinstance(error, StepError) else _text(error)
        code = getattr(error, "code", None)
    words: dict[str, Any] = {
        "name": _shortened(_clean(name or "Error"), NAME_CHARACTERS_MAX),
        "message": _shortened(_clean(message or ""), MESSAGE_CHARACTERS_MAX),
    }
    if error is not None and (stack := _stack(error)):
        words["stack"] = stack
    if isinstance(code, str):
        words["code"] = _shortened(_clean(code), NAME_CHARACTERS_MAX)
    return Raw(json.dumps(words).encode())


def fail_op(error: BaseException) -> FailOp:
    """The op with which a function ends that raised this."""
    return FailOp(error=error_words(error), retriable=is_retriable(error), retry_after_seconds=retry_after_of(error))


def is_retriable(error: BaseException) -> bool:
    """Whether another try may help. One error in a group that says no speaks for the group."""
    return not any(isinstance(leaf, _NOT_RETRIABLE) for leaf in _leaves(error))


def retry_after_of(error: BaseException) -> float | None:
    """The pause that a RetryAfterError asks for, the longest of a group."""
    pauses = [leaf.delay_seconds for leaf in _leaves(error) if isinstance(leaf, RetryAfterError)]
    return max(pauses, default=None)


# The code or the value itself is at fault: the same again gives the same.
_NOT_RETRIABLE: Final = (NonRetriableError, StepUsageError, AmbiguousStepId, ValueRefused, TypeRefused)


def _leaves(error: BaseException) -> list[BaseException]:
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    return [leaf for part in error.exceptions for leaf in _leaves(part)]


def _only_leaf(error: BaseException) -> BaseException:
    # Nurseries and task groups wrap even a single error; its own name is what people look for.
    leaves = _leaves(error)
    return leaves[0] if len(leaves) == 1 else error


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as broken:
        return f"(the message can not be read: str() of the error raised {type(broken).__name__})"


def _stack(error: BaseException) -> str:
    try:
        lines = traceback.format_exception(type(error), error, error.__traceback__, limit=-20)
    except Exception:
        return ""
    text = _clean("".join(lines))
    # The end of a stack is where the error arose.
    return text if len(text) <= STACK_CHARACTERS_MAX else "…" + text[-STACK_CHARACTERS_MAX:]


def _shortened(text: str, characters_max: int) -> str:
    return text if len(text) <= characters_max else text[: characters_max - 1] + "…"


def _clean(text: str) -> str:
    # U+0000 and lone surrogates are refused on the wire.
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()
