"""The HTTP server: Hypercorn's Trio worker around one ASGI app, stopped gracefully by an event."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import hypercorn.trio
import trio
from hypercorn.config import Config

ASGIApp = Callable[[Any, Any, Any], Awaitable[None]]


async def serve_http(
    app: ASGIApp,
    host: str,
    port: int,
    closing: trio.Event,
    *,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until `closing` is set and the requests under way have been answered; reports the bound addresses."""
    config = Config()
    config.bind = [f"[{host}]:{port}" if ":" in host else f"{host}:{port}"]
    config.graceful_timeout = 5.0
    config.keep_alive_timeout = 75.0
    config.accesslog = None
    config.errorlog = None
    # An app keeps one connection for all its runs, which makes thousands of requests a minute.
    config.keep_alive_max_requests = 1_000_000
    config.backlog = 1024
    config.h11_max_incomplete_size = 64 * 1024
    config.include_server_header = False
    await hypercorn.trio.serve(
        _with_whole_ends(app),
        config,
        shutdown_trigger=closing.wait,
        task_status=task_status,
        mode="asgi",
    )


def _with_whole_ends(app: ASGIApp) -> ASGIApp:
    """The app, its last send shielded from its own cancellation.

    With the last piece of an answer Hypercorn starts the clock that closes an idle connection, in the scope of whoever sends; and it
    tells the app that the exchange is over, upon which Quart-Trio cancels that very scope. The clock would die: no idle connection
    would ever be closed, and each shutdown would wait out its time for those that are left.
    """

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        async def send_whole(message: Any) -> None:
            is_last = message["type"] == "http.response.body" and not message.get("more_body", False)
            # Hypercorn shields the writing itself; what follows takes no time.
            with trio.CancelScope(shield=is_last):
                await send(message)

        await app(scope, receive, send_whole)

    return serve
