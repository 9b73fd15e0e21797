"""SIGTERM and SIGINT: the first drains, the second stops now."""

from __future__ import annotations

import signal
from collections.abc import Callable

import trio


async def serve_signals(
    drain: Callable[[], None],
    stop: Callable[[], None],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Call `drain` at the first signal and `stop` at the second."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        count = 0
        async for _ in signals:
            count += 1
            if count == 1:
                drain()
            else:
                stop()
                return
