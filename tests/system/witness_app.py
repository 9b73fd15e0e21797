"""The app of the fault tests: functions of every shape whose bodies are witnessed. Served by hypercorn in a process of its own.

How long bodies take stands in the event's data (`body_seconds`), so that a test chooses where its fault falls.
"""

from __future__ import annotations

import os
import time
from typing import Any

import anyio

import durable
from tests.system.witness_log import witnessed

app = durable.App("shop")
QUICKLY = durable.Backoff(initial_seconds=0.2, factor=1.5, max_seconds=1, jitter=True)


@app.function(trigger=durable.Event("three.wanted"), backoff=QUICKLY, retries=40)
async def three(event: durable.ReceivedEvent, step: durable.Step) -> Any:
    """Three steps in a row; the output is what came in."""
    a = await step.run("a", work, "three", event.data)
    b = await step.run("b", work, "three", a)
    return await step.run("c", work, "three", b)


@app.function(trigger=durable.Event("plain.wanted"), backoff=QUICKLY, retries=40)
def plain(event: durable.ReceivedEvent, step: durable.SyncStep) -> Any:
    """Plain code, in a thread."""
    a = step.run("a", work_in_thread, "plain", event.data)
    return step.run("b", work_in_thread, "plain", a)


@app.function(
    trigger=durable.Event("limited.wanted"), backoff=QUICKLY, retries=40, concurrency=durable.Concurrency(limit=2, key="tenant")
)
async def limited(event: durable.ReceivedEvent, step: durable.Step) -> Any:
    """At most two at once for each tenant; nothing is held while it sleeps."""
    a = await step.run("a", work, "limited", event.data, event.data["tenant"])
    await step.sleep("nap:0.3", 0.3)
    return await step.run("b", work, "limited", a, event.data["tenant"])


@app.function(trigger=durable.Event("nap.wanted"), backoff=QUICKLY, retries=40)
async def napping(event: durable.ReceivedEvent, step: durable.Step) -> Any:
    """Two sleeps; the seconds stand in the ids, where the checker finds them."""
    await step.run("a", work, "napping", event.data)
    await step.sleep("nap:0.8", 0.8)
    await step.run("b", work, "napping", event.data)
    await step.sleep("nap:1.1", 1.1)
    return await step.run("c", work, "napping", event.data)


@app.function(trigger=durable.Event("approval.wanted"), backoff=QUICKLY, retries=40)
async def approving(event: durable.ReceivedEvent, step: durable.Step) -> Any:
    """A body and a wait side by side, so that the wait can end while the body runs; then one more body."""
    approved: list[Any] = []

    async def wait() -> None:
        timeout = event.data.get("timeout_seconds", 60)
        approved.append(
            await step.wait_for_event("approve", event="approval.given", match={"n": event.data["n"]}, timeout=timeout)
        )

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await step.run("ask", work, "approving", event.data)
    await step.run("after", work, "approving", {"n": event.data["n"]})
    return {"approved": None if approved[0] is None else approved[0].data}


@app.function(trigger=durable.Event("chain.wanted"), backoff=QUICKLY, retries=40)
async def chaining(event: durable.ReceivedEvent, step: durable.Step) -> Any:
    """Sends an event from a step: that one starts exactly one `three`."""
    await step.run("a", work, "chaining", event.data)
    return await step.send_event("next", {"name": "three.wanted", "data": {"n": event.data["n"], "from": "chain"}})


@app.function(trigger=durable.Event("flaky.wanted"), backoff=QUICKLY, retries=40)
async def flaky(event: durable.ReceivedEvent, step: durable.Step) -> Any:
    """Its step fails at its first two attempts."""
    return await step.run("a", fail_twice, event.data, retries=5, backoff=QUICKLY)


@app.function(trigger=durable.Event("poison.wanted"), backoff=QUICKLY, retries=2)
async def poison(event: durable.ReceivedEvent, step: durable.Step) -> Any:
    """Takes its process down with it, each time."""
    return await step.run("drink", exit_at_once)


async def work(function: str, data: Any, key: str = "") -> Any:
    with witnessed(function, key):
        await anyio.sleep(data.get("body_seconds", 0))
    return data


def work_in_thread(function: str, data: Any, key: str = "") -> Any:
    with witnessed(function, key):
        time.sleep(data.get("body_seconds", 0))
    return data


async def fail_twice(data: Any) -> Any:
    with witnessed("flaky"):
        if durable.current_step().attempt <= 2:
            raise RuntimeError("not yet")
    return data


def exit_at_once() -> None:
    with witnessed("poison"):
        os._exit(7)


asgi = app.asgi()
