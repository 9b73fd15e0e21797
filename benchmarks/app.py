"""The app that is measured: three tiny steps, so that what is left is Durable itself. Served by hypercorn in a process of its own."""

from __future__ import annotations

from typing import Any

import durable

app = durable.App("bench")


@app.function(trigger=durable.Event("three.wanted"))
async def three(event: durable.ReceivedEvent, step: durable.Step) -> Any:
    a = await step.run("a", add_one, event.data["n"])
    b = await step.run("b", add_one, a)
    return await step.run("c", add_one, b)


async def add_one(n: int) -> int:
    return n + 1


asgi = app.asgi()
