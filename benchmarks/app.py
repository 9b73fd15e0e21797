"""The app that is measured. Its bodies do next to nothing, so that what is left is Durable itself. Served by hypercorn in a process of its own.

Every function has an event that starts it; its `data` says how much is wanted.
"""

from __future__ import annotations

import random
from typing import Any

import durable

app = durable.App("bench")


@app.function(trigger=durable.Event("three.wanted"))
async def three(event: durable.ReceivedEvent, step: durable.Step) -> Any:
    """Three steps, one after the other."""
    a = await step.run("a", add_one, event.data["n"])
    b = await step.run("b", add_one, a)
    return await step.run("c", add_one, b)


@app.function(trigger=durable.Event("long.wanted"))
async def long(event: durable.ReceivedEvent, step: durable.Step) -> Any:
    """`steps` steps, one after the other."""
    n = 0
    for number in range(event.data["steps"]):
        n = await step.run(f"step-{number}", add_one, n)
    return n


@app.function(trigger=durable.Event("nap.wanted"))
async def nap(event: durable.ReceivedEvent, step: durable.Step) -> None:
    """A sleep that is longer than any benchmark."""
    await step.sleep("nap", "1d")


@app.function(trigger=durable.Event("wide.wanted"))
async def wide(event: durable.ReceivedEvent, step: durable.Step) -> int:
    """`results` results of `result_bytes` each, then two waits: each begins an invocation that replays all of them."""
    wanted = event.data
    size = 0
    for number in range(wanted["results"]):
        size += len(await step.run(f"result-{number}", letters, number, wanted["result_bytes"]))
    await step.wait_for_event("first", event="wide.first", timeout="1h")
    await step.wait_for_event("second", event="wide.second", timeout="1h")
    return size


async def add_one(n: int) -> int:
    return n + 1


async def letters(seed: int, count: int) -> str:
    """Hexadecimal digits that do not compress to nothing in the database."""
    return random.Random(seed).randbytes(count // 2).hex()


asgi = app.asgi()
