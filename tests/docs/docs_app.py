"""The apps of all pages as one ASGI application, `/<page>/` each, so that examples meet the very functions of their page."""

from __future__ import annotations

from typing import Any

import durable
from tests.docs.markdown_blocks import pages
from tests.docs.run_page import module_of

PATHS: dict[str, Any] = {}

for _page in pages():
    _app = getattr(module_of(_page), "app", None)
    # The README's app is served by its own commands.
    if isinstance(_app, durable.App) and "docs" in _page.parts:
        PATHS[_page.stem] = _app.asgi()


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        await next(iter(PATHS.values()))(scope, receive, send)
        return
    name = scope["path"].strip("/").partition("/")[0]
    await PATHS[name](scope, receive, send)
