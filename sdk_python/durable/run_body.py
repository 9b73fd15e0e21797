"""Runs the body of a step once and makes the op that tells of it.

It sends nothing and knows nothing of the run: whether anybody still wants the op is the executor's to say.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime

from msgspec import Raw

from durable.error_words import error_words, is_retriable, retry_after_of
from durable.json_text import encode_result
from durable.open_step import Body, OpenStep
from durable.runtime import Scope
from durable.wire import StepErrorOp, StepOp


async def run_body(
    scope: Scope, step: OpenStep, body: Body, seen: int, is_of_the_body: Callable[[BaseException], bool]
) -> StepOp | StepErrorOp:
    """The op of one try. What `is_of_the_body` does not take for a failure of the body is raised on."""
    started_at, started = datetime.now(UTC), time.monotonic()
    try:
        value = await scope.run_limited(body.timeout_seconds, body.call, is_async=body.is_async)
        data = Raw(encode_result(value, where=f"the result of step {step.id!r}"))
    except BaseException as error:
        if not is_of_the_body(error):
            raise
        return StepErrorOp(
            id=step.id,
            error=error_words(error),
            retriable=is_retriable(error),
            attempt=step.attempt,
            started_at=started_at,
            duration_seconds=time.monotonic() - started,
            seen=seen,
            retry_after_seconds=retry_after_of(error),
            retries=body.retries,
            backoff=body.backoff,
        )
    step.result = data
    return StepOp(
        id=step.id,
        data=data,
        attempt=step.attempt,
        started_at=started_at,
        duration_seconds=time.monotonic() - started,
        seen=seen,
    )
