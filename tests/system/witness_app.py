"""The app of the fault tests: functions of every shape whose bodies are witnessed. Served by hypercorn in a process of its own.

How long bodies take stands in the event's data (`body_seconds`), so that a test chooses where its fault falls. Handlers write a line
when they go on with a result. Which invocations come in one call is written to `calls.jsonl` beside the witness.
"""

from __future__ import annotations

import hashlib
import os
import random
import threading
import time
from pathlib import Path
from typing import Any

import anyio
from msgspec import Raw

import durable
from durable.values import EngineValues
from tests.system import call_log
from tests.system.witness_log import FILE_VARIABLE, went_on, witnessed

app = durable.App("shop")
QUICKLY = durable.Backoff(initial_seconds=0.2, factor=1.5, max_seconds=1, jitter=True)


@app.function(trigger=durable.Event("three.wanted"), backoff=QUICKLY, retries=40)
async def three(event: durable.ReceivedEvent, step: durable.Step) -> Any:
    """Three steps in a row; the output is what came in."""
    a = await step.run("a", work, "three", event.data)
    went_on(step, "a", "three")
    b = await step.run("b", work, "three", a)
    went_on(step, "b", "three")
    c = await step.run("c", work, "three", b)
    went_on(step, "c", "three")
    return c


@app.function(trigger=durable.Event("plain.wanted"), backoff=QUICKLY, retries=40)
def plain(event: durable.ReceivedEvent, step: durable.SyncStep) -> Any:
    """Plain code, in a thread."""
    a = step.run("a", work_in_thread, "plain", event.data)
    went_on(step, "a", "plain")
    return step.run("b", work_in_thread, "plain", a)


@app.function(
    trigger=durable.Event("limited.wanted"), backoff=QUICKLY, retries=40, concurrency=durable.Concurrency(limit=2, key="tenant")
)
async def limited(event: durable.ReceivedEvent, step: durable.Step) -> Any:
    """At most two at once for each tenant; nothing is held while it sleeps."""
    a = await step.run("a", work, "limited", event.data, event.data["tenant"])
    went_on(step, "a", "limited")
    await step.sleep("nap:0.3", 0.3)
    return await step.run("b", work, "limited", a, event.data["tenant"])


@app.function(trigger=durable.Event("nap.wanted"), backoff=QUICKLY, retries=40)
async def napping(event: durable.ReceivedEvent, step: durable.Step) -> Any:
    """Two sleeps; the seconds stand in the ids, where the checker finds them."""
    await step.run("a", work, "napping", event.data)
    went_on(step, "a", "napping")
    await step.sleep("nap:0.8", 0.8)
    await step.run("b", work, "napping", event.data)
    went_on(step, "b", "napping")
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
    went_on(step, "a", "chaining")
    return await step.send_event("next", {"name": "three.wanted", "data": {"n": event.data["n"], "from": "chain"}})


@app.function(trigger=durable.Event("flaky.wanted"), backoff=QUICKLY, retries=40)
async def flaky(event: durable.ReceivedEvent, step: durable.Step) -> Any:
    """Its step fails at its first two attempts."""
    return await step.run("a", fail_twice, event.data, retries=5, backoff=QUICKLY)


@app.function(trigger=durable.Event("poison.wanted"), backoff=QUICKLY, retries=2)
async def poison(event: durable.ReceivedEvent, step: durable.Step) -> Any:
    """Takes its process down with it, each time."""
    return await step.run("drink", exit_at_once)


@app.function(trigger=durable.Event("big.wanted"), backoff=QUICKLY, retries=40)
async def carrying(event: durable.ReceivedEvent, step: durable.Step) -> Any:
    """A result that travels by reference, twice: stored before its step, and fetched when another lease asks for it after the sleep."""
    pages = await step.run("a", make_pages, event.data)
    went_on(step, "a", "carrying")
    await step.sleep("nap:0.2", 0.2)
    await step.run("b", work, "carrying", {"body_seconds": event.data.get("body_seconds", 0)})
    went_on(step, "b", "carrying")
    return digest_of(pages)


@app.function(trigger=durable.Event("block.wanted"), backoff=QUICKLY, retries=40)
async def blocking(event: durable.ReceivedEvent, step: durable.Step) -> Any:
    """A body on the loop that blocks it, and so all other invocations of the process."""
    await step.run("a", block_the_loop, event.data)
    went_on(step, "a", "blocking")
    return await step.run("b", work, "blocking", event.data)


@app.function(trigger=durable.Event("exit.wanted"), backoff=QUICKLY, retries=40)
async def exiting(event: durable.ReceivedEvent, step: durable.Step) -> Any:
    """Takes its process down once, when it has the result of the step `exit_after`: within `exit_seconds`, 0 being at once."""
    data = event.data
    for step_id in "abc":
        data = await step.run(step_id, work, "exiting", data)
        went_on(step, step_id, "exiting")
        if step_id == event.data["exit_after"] and _is_first(f"exit-{event.data['n']}"):
            exit_within(event.data["exit_seconds"])
    return data


async def work(function: str, data: Any, key: str = "") -> Any:
    with witnessed(function, key):
        await anyio.sleep(data.get("body_seconds", 0))
    return data


def work_in_thread(function: str, data: Any, key: str = "") -> Any:
    with witnessed(function, key):
        time.sleep(data.get("body_seconds", 0))
    return data


async def make_pages(data: Any) -> Any:
    with witnessed("carrying"):
        await anyio.sleep(data.get("body_seconds", 0))
        return pages_of(data)


def pages_of(data: Any) -> list[str]:
    """`bytes` characters, of which each hundred is different; the same for the same data."""
    chance = random.Random(data["n"])
    return [f"{chance.getrandbits(400):0100x}" for _ in range(data["bytes"] // 100)]


def digest_of(pages: list[str]) -> dict[str, Any]:
    """What `carrying` gives for its pages."""
    return {"count": len(pages), "sha256": hashlib.sha256("".join(pages).encode()).hexdigest()}


async def block_the_loop(data: Any) -> Any:
    with witnessed("blocking"):
        time.sleep(data["block_seconds"])  # noqa: ASYNC251 - what is shown is what becomes of apps that do it
    return data


async def fail_twice(data: Any) -> Any:
    with witnessed("flaky"):
        if durable.current_step().attempt <= 2:
            raise RuntimeError("not yet")
    return data


def exit_at_once() -> None:
    with witnessed("poison"):
        os._exit(7)


def exit_within(seconds: float) -> None:
    """End the process, without any clean-up, at a moment that nobody chose."""
    if seconds == 0:
        os._exit(9)
    threading.Timer(seconds, os._exit, (9,)).start()


async def store_and_exit(values: EngineValues, run_id: str, data: Raw) -> str:
    """`EngineValues.store`, behind which the process dies when the file `exit_after_store` is there: the step is never sent."""
    ref = await _store(values, run_id, data)
    told = Path(os.environ[FILE_VARIABLE]).with_name("exit_after_store")
    if told.exists():
        told.rename(told.with_name("exited_after_store"))
        os._exit(9)
    return ref


def _is_first(name: str) -> bool:
    """Whether nobody was here before, in any process."""
    try:
        Path(os.environ[FILE_VARIABLE]).with_name(name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


_store = EngineValues.store
if FILE_VARIABLE in os.environ:
    # Only where this app is served. No other place is between the two messages.
    EngineValues.store = store_and_exit  # type: ignore[method-assign]

asgi = call_log.logged(app.asgi())
