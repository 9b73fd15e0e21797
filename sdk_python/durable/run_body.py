"""Runs the body of a step once and makes the op that tells of it.

It knows nothing of the run and sends no op: whether anybody still wants it is the executor's to say.
"""

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from msgspec import UNSET, Raw
from msgspec.structs import replace

from durable.error_words import error_words, is_retriable, retry_after_of
from durable.errors import Refused
from durable.json_text import encode_and_read_back
from durable.open_step import Body, OpenStep
from durable.runtime import Scope
from durable.values import Values
from durable.wire import StepErrorOp, StepOp

logger: Final = logging.getLogger("durable")

REF_BYTES_MIN: Final = 64 << 10
"""Results from here on travel by reference."""


async def run_body(
    scope: Scope, step: OpenStep, body: Body, seen: int, is_of_the_body: Callable[[BaseException, OpenStep], bool]
) -> StepOp | StepErrorOp:
    """The op of one try. What `is_of_the_body` does not take for a failure of the body is raised on."""
    started_at, started = datetime.now(UTC), time.monotonic()
    try:
        value = await scope.run_limited(body.timeout_seconds, body.call, is_async=body.is_async)
        encoded, step.value = encode_and_read_back(value, where=f"the result of step {step.id!r}")
    except BaseException as error:
        if not is_of_the_body(error, step):
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
    step.result = data = Raw(encoded)
    return StepOp(
        id=step.id,
        data=data,
        attempt=step.attempt,
        started_at=started_at,
        duration_seconds=time.monotonic() - started,
        seen=seen,
    )


async def store_result(values: Values, run_id: str, op: StepOp) -> StepOp:
    """The op with a reference in place of a large result, which is stored first; unchanged when the engine refuses to store it,
    as one does that knows no references. Raises what else `Values.store` does.
    """
    if not isinstance(op.data, Raw) or len(op.data) < REF_BYTES_MIN:
        return op
    try:
        return replace(op, data=UNSET, ref=await values.store(run_id, op.data))
    except Refused as refused:
        logger.warning("run %s: the large result of step %r travels whole: %s", run_id, op.id, refused)
        return op
