"""Every exception that users of the SDK meet. Each docstring says when it comes and what to do about it.

Each has a stable `code`, which is what travels and what code should compare. Nothing here raises.
"""

from typing import Final

from durable.durations import Duration, parse_duration

# The engine's bounds for a pause that a failure asks for.
RETRY_AFTER_SECONDS_MIN: Final = 1.0
RETRY_AFTER_SECONDS_MAX: Final = 86_400.0


class DurableError(Exception):
    """The parent of all exceptions below that are errors; catch it to catch any of them."""

    code: str = "durable_error"


class NonRetriableError(DurableError):
    """Raise it in a step's body or in a handler when another try can not help: it fails at once, without retries.

    An invalid card is one; a bank that does not answer is not. `code` travels with the error.
    """

    code: str = "non_retriable"

    def __init__(self, message: str = "", *, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class RetryAfterError(DurableError):
    """Raise it in a step's body or in a handler to say when the next try should be: "30s", seconds or a timedelta.

    Use it when the other side said so, for example in a Retry-After header. The pause is 1 s to 24 h; what lies
    outside is brought to the nearest of them. It spends a retry, as any other error.
    """

    code: str = "retry_after"

    def __init__(self, delay: Duration, message: str = "") -> None:
        asked_seconds = parse_duration(delay)
        self.delay_seconds = min(max(asked_seconds, RETRY_AFTER_SECONDS_MIN), RETRY_AFTER_SECONDS_MAX)
        super().__init__(message or f"Asked to be tried again in {self.delay_seconds:g} s.")


class StepError(DurableError):
    """A step has failed for good: its retries are spent, or it said that none would help.

    Raised at the line of the step, in this and in every later invocation. Catch it to compensate; uncaught it
    fails the function. `name`, `message` and `code` are those of the error in the body, which itself is gone.
    """

    def __init__(self, name: str, message: str, code: str | None = None, step_id: str = "") -> None:
        super().__init__(f"{name}: {message}" if message else name)
        self.name = name
        self.message = message
        self.code = code or "step_failed"
        self.step_id = step_id

    def __reduce__(self) -> tuple[type["StepError"], tuple[str, str, str, str]]:
        return type(self), (self.name, self.message, self.code, self.step_id)


class Parked(BaseException):
    """The SDK unwinds a handler that waits with it; it is no error. Never catch it, and never swallow it.

    It is a BaseException, so `except Exception` lets it pass. `except BaseException` and bare `except` must
    raise it again; a handler that swallows it fails with `park_swallowed`.
    """


class AmbiguousStepId(DurableError):
    """Two tasks or threads have a step of the same id open at once, so it is chance which of them gets which
    result. Give them ids of their own, for example `f"charge-{order_id}"`.
    """

    code: str = "ambiguous_step_id"


class CodeMismatch(DurableError):
    """The run remembers another kind of step under this id (a sleep where now is a run, say). Give the changed step
    a new id, or deploy the old code again until the old runs have ended.
    """

    code: str = "code_mismatch"


class StepUsageError(DurableError):
    """A step was used in a way that can not work; the message says which and how to write it instead."""

    code: str = "step_usage"

    def __init__(self, message: str = "", *, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class ConfigurationError(DurableError):
    """The environment does not say what the SDK must know; the message says exactly what to set."""

    code: str = "not_configured"


class EngineUnreachable(DurableError):
    """The engine gave no answer that can be trusted, also after several tries. See that it runs and that
    DURABLE_URL is its address. Whether it took the message is not known; repeating it with the same id is safe.

    `retry_after_seconds` is the pause that a busy engine (429, 503) asked for.
    """

    code: str = "engine_unreachable"

    def __init__(self, message: str = "", *, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class Refused(DurableError):
    """The engine answered, and said no. `message` says what is wrong, `hint` what to do, `status` is that of HTTP,
    `place` the JSON pointer of the part at fault. The same message again gets the same answer.
    """

    def __init__(self, code: str, message: str, hint: str | None = None, status: int = 0, place: str | None = None) -> None:
        super().__init__(f"{message} {hint}" if hint else message)
        self.code = code
        self.message = message
        self.hint = hint
        self.status = status
        self.place = place

    def __reduce__(self) -> tuple[type["Refused"], tuple[str, str, str | None, int, str | None]]:
        return type(self), (self.code, self.message, self.hint, self.status, self.place)


class RunFailed(DurableError):
    """The run whose result was asked for has failed; `name`, `message` and `code` are those of its error."""

    def __init__(self, run_id: str, name: str, message: str, code: str | None = None) -> None:
        super().__init__(f"The run {run_id} failed with {name}: {message}")
        self.run_id = run_id
        self.name = name
        self.message = message
        self.code = code or "run_failed"

    def __reduce__(self) -> tuple[type["RunFailed"], tuple[str, str, str, str]]:
        return type(self), (self.run_id, self.name, self.message, self.code)


class RunCancelled(DurableError):
    """The run whose result was asked for was cancelled, so there will be no result."""

    code: str = "run_cancelled"

    def __init__(self, run_id: str) -> None:
        super().__init__(f"The run {run_id} was cancelled.")
        self.run_id = run_id

    def __reduce__(self) -> tuple[type["RunCancelled"], tuple[str]]:
        return type(self), (self.run_id,)


class ResultNotReady(DurableError, TimeoutError):
    """The run has not ended within the time given to `result()`. It goes on; ask again."""

    code: str = "result_not_ready"
