"""One invocation, from its hand-over to the line that ends it: opens the scope in which all of it lives, and stops all of it."""

from collections.abc import Callable

from durable.executor import Execution
from durable.function import Function
from durable.runtime import Runtime
from durable.sender import Sender
from durable.values import Values
from durable.wire import Ended, Invocation


async def run_invocation(
    function: Function,
    invocation: Invocation,
    sender: Sender,
    *,
    received_at: float,
    runtime: Runtime,
    values: Values | None = None,
    on_started: Callable[[Execution], None] | None = None,
) -> Ended | None:
    """Run the function's handler once, as far as it comes; the line that ends the invocation.

    `received_at` is the monotonic instant at which the call arrived: the lease counts from it. Without `values` nothing
    travels by reference. `on_started` gets the execution before the handler begins. None means that the engine has
    given this generation up (stale or cancelled): then there is nothing to report.
    """
    execution = None
    try:
        async with runtime.open_scope() as scope:
            execution = Execution(function, invocation, sender, received_at, scope, values)
            if on_started is not None:
                on_started(execution)
            try:
                return await execution.drive()
            finally:
                execution.stop()
    finally:
        if execution is not None:
            execution.close()
