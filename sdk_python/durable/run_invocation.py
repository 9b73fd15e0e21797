"""One invocation, from its hand-over to the line that ends it: opens the scope in which all of it lives, and stops all of it."""

from durable.executor import Execution
from durable.function import Function
from durable.runtime import Runtime
from durable.sender import Sender
from durable.wire import Ended, Invocation


async def run_invocation(
    function: Function, invocation: Invocation, sender: Sender, *, received_at: float, runtime: Runtime
) -> Ended | None:
    """Run the function's handler once, as far as it comes; the line that ends the invocation.

    `received_at` is the monotonic instant at which the call arrived: the lease counts from it. None means that
    the engine has given this generation up (stale or cancelled): then there is nobody to tell.
    """
    execution = None
    try:
        async with runtime.open_scope() as scope:
            execution = Execution(function, invocation, sender, received_at, scope)
            try:
                return await execution.drive()
            finally:
                execution.stop()
    finally:
        if execution is not None:
            execution.has_ended = True
