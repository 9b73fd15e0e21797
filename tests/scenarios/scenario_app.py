"""The app of the scenarios: a function for each shape of durable code that users write, with bodies that are witnessed.

Served as it stands by hypercorn on asyncio and on Trio, and by a threaded WSGI server. SCENARIO_CODE chooses the deployment: the
functions under "Deployments" look different in each. Bodies that must wait for the test wait for a file, their gate.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio

import durable
from tests.system.witness_log import witnessed

GATE_SECONDS_MAX = 60.0
CODE = os.environ.get("SCENARIO_CODE", "first")
QUICKLY = durable.Backoff(initial_seconds=0.1, factor=1.5, max_seconds=0.5, jitter=True)

logging.basicConfig(level=logging.INFO, format="LINE %(name)s %(message)s")
logging.getLogger("httpx").setLevel(logging.WARNING)
app = durable.App("shop")


# Waiting --------------------------------------------------------------------------------------------------------------


@app.function(trigger=durable.Event("user.created"), backoff=QUICKLY)
async def onboarding(event: durable.ReceivedEvent, step: durable.Step) -> Any:
    """What the README shows, with times from the event."""
    user = await step.run("load-user", work, "onboarding", {"id": event.data["id"], "name": "Ada"})
    step.logger.info("loaded %s", user["id"])
    await step.sleep("cooldown", event.data["cooldown"])
    step.logger.info("cooled down %s", user["id"])
    ok = await step.wait_for_event(
        "approve", event="approval.received", match={"userId": user["id"]}, timeout=event.data["approval_timeout"]
    )
    step.logger.info("approved %s", user["id"])
    await step.run("send-email", work, "onboarding", user)
    return {"approved": ok is not None, "by": None if ok is None else ok.data["by"]}


@app.function(trigger=durable.Event("question.asked"), backoff=QUICKLY)
async def asking(event: durable.ReceivedEvent, step: durable.Step) -> Any:
    """Asks, and only then waits: the answer may be there before. Waits once more, for an answer that is another."""
    await step.run("ask", gated, "asking", event.data["gate"])
    first = await step.wait_for_event("answer", event="question.answered", match={"n": event.data["n"]}, timeout="30s")
    second = await step.wait_for_event("answer", event="question.answered", match={"n": event.data["n"]}, timeout="1s")
    return [None if answer is None else answer.data["text"] for answer in (first, second)]


@app.function(trigger=durable.Event("nap.wanted"), backoff=QUICKLY)
async def napping(event: durable.ReceivedEvent, step: durable.Step) -> Any:
    """Sleeps for a time and until an instant; each body says when it ran."""
    a = await step.run("a", clock, "napping")
    await step.sleep("nap", event.data["seconds"])
    b = await step.run("b", clock, "napping")
    until = datetime.fromtimestamp(b + event.data["seconds"], UTC)
    await step.sleep_until("until", until)
    c = await step.run("c", clock, "napping")
    await step.sleep_until("long-ago", "2001-02-03T04:05:06Z")
    return {"a": a, "b": b, "c": c, "until": until.timestamp()}


@app.function(trigger=durable.Event("days.wanted"))
async def sleeping_for_days(event: durable.ReceivedEvent, step: durable.Step) -> None:
    """A run that does nothing for a long time."""
    await step.sleep("days", "3d")


# Failing --------------------------------------------------------------------------------------------------------------


@app.function(trigger=durable.Event("charge.wanted"), backoff=QUICKLY)
async def charging(event: durable.ReceivedEvent, step: durable.Step) -> Any:
    """The charge fails as often as the event says; when its retries are spent, the order is released."""
    try:
        charged = await step.run("charge", decline, event.data["failures"], retries=2, backoff=QUICKLY)
    except durable.StepError as error:
        released = await step.run("release", work, "charging", "released")
        return {"compensated": released, "name": error.name, "message": error.message, "code": error.code, "step": error.step_id}
    return {"charged": charged}


@app.function(trigger=durable.Event("card.checked"), backoff=QUICKLY)
async def checking(event: durable.ReceivedEvent, step: durable.Step) -> Any:
    """Its step fails once and for all, and nobody catches it."""
    await step.run("check", refuse_card, retries=5)


@app.function(trigger=durable.Event("order.impossible"), retries=5)
async def ordering(event: durable.ReceivedEvent, step: durable.Step) -> Any:
    """Raises outside of its step, once and for all."""
    await step.run("look", work, "ordering", None)
    raise durable.NonRetriableError("there is no such shop")


@app.function(trigger=durable.Event("busy.called"), backoff=QUICKLY)
async def calling(event: durable.ReceivedEvent, step: durable.Step) -> Any:
    """The other side says when to come back."""
    return await step.run("call", come_back, event.data["seconds"], retries=2, backoff=QUICKLY)


@app.function(trigger=durable.Event("shelf.looked.at"), retries=2, backoff=QUICKLY)
async def looking(event: durable.ReceivedEvent, step: durable.Step) -> Any:
    """Raises outside of its step, in every attempt."""
    await step.run("look", work, "looking", None)
    try:
        return {}["shelf"]
    except KeyError as error:
        raise RuntimeError(f"the shelf is empty, attempt {step.attempt}") from error


@app.function(trigger=durable.Event("second.try"), retries=2, backoff=QUICKLY)
async def trying(event: durable.ReceivedEvent, step: durable.Step) -> Any:
    """Raises outside of its step in the first attempt only."""
    await step.run("look", work, "trying", None)
    if step.attempt == 1:
        raise RuntimeError("not yet")
    return step.attempt


# Side by side ---------------------------------------------------------------------------------------------------------


@app.function(trigger=durable.Event("gather.wanted"), backoff=QUICKLY)
async def gathering(event: durable.ReceivedEvent, step: durable.Step) -> Any:
    """Three bodies at once with asyncio.gather."""
    results = await asyncio.gather(*(step.run(name, slowly, "gathering", name, 0.4) for name in "abc"))
    return [*results, await step.run("last", work, "gathering", "last")]


@app.function(trigger=durable.Event("group.wanted"), backoff=QUICKLY)
async def grouping(event: durable.ReceivedEvent, step: durable.Step) -> Any:
    """One task of a TaskGroup fails, so the group gives up the other, which waits for an event."""
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(step.wait_for_event("never", event="group.joined", match={"n": event.data["n"]}, timeout="1h"))
            tasks.create_task(step.run("fails", refuse_card))
    except* durable.StepError as group:
        names = [str(error) for error in group.exceptions]
    joined = await step.wait_for_event("later", event="group.joined", match={"n": event.data["n"]}, timeout="30s")
    return {"errors": names, "joined": None if joined is None else joined.data["n"]}


@app.function(trigger=durable.Event("nursery.wanted"), backoff=QUICKLY)
async def nursing(event: durable.ReceivedEvent, step: durable.Step) -> Any:
    """Three bodies at once in a Trio nursery, then one that ends the nursery while another child waits."""
    import trio

    results: dict[str, Any] = {}

    async def child(name: str) -> None:
        results[name] = await step.run(name, slowly, "nursing", name, 0.4)

    async with trio.open_nursery() as nursery:
        for name in "abc":
            nursery.start_soon(child, name)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: step.sleep("never", "1h"))
        await step.run("wins", work, "nursing", "wins")
        nursery.cancel_scope.cancel()
    return [results[name] for name in "abc"] + [await step.run("last", work, "nursing", "last")]


@app.function(trigger=durable.Event("many.wanted"), backoff=QUICKLY)
async def fanning_out(event: durable.ReceivedEvent, step: durable.Step) -> Any:
    """As many bodies at once as the event says, on any loop."""
    results: dict[int, int] = {}

    async def one(n: int) -> None:
        results[n] = await step.run(f"part-{n}", work, "fanning_out", n)

    async with anyio.create_task_group() as tasks:
        for n in range(event.data["count"]):
            tasks.start_soon(one, n)
    return sum(results.values())


@app.function(trigger=durable.Event("row.wanted"), backoff=QUICKLY)
async def counting(event: durable.ReceivedEvent, step: durable.Step) -> Any:
    """As many steps in a row, all of one id."""
    return [await step.run("count", lambda n=n: n) for n in range(event.data["count"])]


@app.function(trigger=durable.Event("twins.wanted"), retries=0)
async def twins(event: durable.ReceivedEvent, step: durable.Step) -> Any:
    """The same id open twice at once."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(step.run, "twin", work, "twins", 1)
        tasks.start_soon(step.run, "twin", work, "twins", 2)


@app.function(trigger=durable.Event("big.wanted"), retries=0, backoff=QUICKLY)
async def carrying(event: durable.ReceivedEvent, step: durable.Step) -> Any:
    """A big result, made in one invocation and read in another."""
    await step.run("make", big_text, event.data["bytes"])
    await step.sleep("nap", 0.2)
    return await step.run("copy", big_text, event.data["bytes"])


@app.function(trigger=durable.Event("plain.wanted"), backoff=QUICKLY)
def plain(event: durable.ReceivedEvent, step: durable.SyncStep) -> Any:
    """Plain code in a thread: every kind of step."""
    first = step.run("first", work_in_thread, "plain", event.data["n"])
    step.logger.info("began %s", first)
    step.sleep("nap", 0.3)
    try:
        step.run("fails", refuse_card)
    except durable.StepError as error:
        caught = error.code
    answer = step.wait_for_event("answer", event="plain.answered", match={"n": first}, timeout="30s")
    step.logger.info("answered %s", first)
    sent = step.send_event("next", {"name": "child.wanted", "data": {"n": first}})
    return {"n": first, "caught": caught, "answer": None if answer is None else answer.data["text"], "sent": len(sent)}


# Starting others, limits and cancelling -------------------------------------------------------------------------------


@app.function(trigger=durable.Event("parent.wanted"), backoff=QUICKLY)
async def sending(event: durable.ReceivedEvent, step: durable.Step) -> Any:
    """Sends from a step, and lives on through another invocation."""
    ids = await step.send_event("next", [{"name": "child.wanted", "data": {"n": event.data["n"]}}, {"name": "nobody.listens"}])
    await step.sleep("nap", 0.2)
    await step.run("after", fail_first, "sending")
    return ids


@app.function(trigger=durable.Event("child.wanted"), backoff=QUICKLY)
async def child(event: durable.ReceivedEvent, step: durable.Step) -> Any:
    return await step.run("child", work, "child", event.data["n"])


@app.function(trigger=durable.Event("double.wanted"), backoff=QUICKLY)
async def doubling(event: durable.ReceivedEvent, step: durable.Step) -> Any:
    """What is started by hand: its input is the data of its event."""
    return {"event": event.name, "twice": await step.run("double", lambda: event.data["n"] * 2)}


@app.function(trigger=durable.Event("limited.wanted"), backoff=QUICKLY, concurrency=durable.Concurrency(limit=2, key="tenant"))
async def limited(event: durable.ReceivedEvent, step: durable.Step) -> Any:
    """At most two at once for each tenant."""
    return await step.run("work", slowly, "limited", event.data["n"], event.data["seconds"], event.data["tenant"])


@app.function(trigger=durable.Event("single.wanted"), backoff=QUICKLY, concurrency=durable.Concurrency(limit=1))
async def single(event: durable.ReceivedEvent, step: durable.Step) -> Any:
    """One at a time, whose body waits for its gate."""
    await step.run("hold", gated, "single", event.data["gate"], "single")
    return await step.run("after", work, "single", event.data["n"], "single")


# Deployments ----------------------------------------------------------------------------------------------------------


@app.function(trigger=durable.Event("change.wanted"), retries=1, backoff=QUICKLY)
async def changing(event: durable.ReceivedEvent, step: durable.Step) -> Any:
    """Its first step is of another kind in the deployment `mismatch`."""
    if CODE == "mismatch":
        await step.sleep("begin", 0.1)
    else:
        await step.run("begin", work, "changing", 1)
    await step.wait_for_event("go", event="change.continued", match={"n": event.data["n"]}, timeout="10m")
    return await step.run("end", work, "changing", CODE)


@app.function(trigger=durable.Event("growth.wanted"), retries=1, backoff=QUICKLY)
async def growing(event: durable.ReceivedEvent, step: durable.Step) -> Any:
    """The deployment `grown` leaves out a step that ran and adds one before and one after the wait."""
    if CODE == "grown":
        await step.run("new-before", work, "growing", "new")
    else:
        await step.run("old", work, "growing", "old")
    await step.wait_for_event("go", event="growth.continued", match={"n": event.data["n"]}, timeout="10m")
    if CODE == "grown":
        await step.run("new-after", work, "growing", "new")
    return await step.run("end", work, "growing", CODE)


@app.function(
    trigger=durable.Event("lowered.wanted"),
    backoff=QUICKLY,
    concurrency=durable.Concurrency(limit=1 if CODE == "lowered" else 2, key="tenant"),
)
async def lowered(event: durable.ReceivedEvent, step: durable.Step) -> Any:
    """Two at once, in the deployment `lowered` one."""
    return await step.run("work", gated, "lowered", event.data["gate"], event.data["tenant"])


if CODE != "removed":

    @app.function(trigger=durable.Event("leave.wanted"), backoff=QUICKLY)
    async def leaving(event: durable.ReceivedEvent, step: durable.Step) -> Any:
        """Is not there in the deployment `removed`."""
        await step.run("before", work, "leaving", 1)
        await step.wait_for_event("go", event="leave.continued", match={"n": event.data["n"]}, timeout="10m")
        return await step.run("after", work, "leaving", CODE)


# Bodies ---------------------------------------------------------------------------------------------------------------


async def work(function: str, result: Any, key: str = "") -> Any:
    with witnessed(function, key):
        return result


def work_in_thread(function: str, result: Any) -> Any:
    with witnessed(function):
        return result


async def slowly(function: str, result: Any, seconds: float, key: str = "") -> Any:
    with witnessed(function, key):
        await anyio.sleep(seconds)
    return result


async def gated(function: str, gate: str, key: str = "") -> str:
    """Runs until the test opens the gate."""
    with witnessed(function, key):
        with anyio.fail_after(GATE_SECONDS_MAX):
            while not Path(gate).exists():
                await anyio.sleep(0.02)
    return gate


async def clock(function: str) -> float:
    with witnessed(function):
        return time.time()


class CardDeclined(Exception):
    code = "card_declined"


async def decline(failures: int) -> str:
    with witnessed("charging"):
        attempt = durable.current_step().attempt
        if attempt <= failures:
            raise CardDeclined(f"no money, attempt {attempt}")
    return f"charged at attempt {attempt}"


def refuse_card() -> None:
    with witnessed("checking"):
        raise durable.NonRetriableError("the card has expired", code="expired")


async def come_back(seconds: float) -> int:
    with witnessed("calling"):
        if durable.current_step().attempt == 1:
            raise durable.RetryAfterError(seconds)
    return durable.current_step().attempt


async def fail_first(function: str) -> int:
    with witnessed(function):
        if durable.current_step().attempt == 1:
            raise RuntimeError("not yet")
    return durable.current_step().attempt


def big_text(size_bytes: int) -> str:
    """Text of so many bytes of JSON, with all that encoders like to write in another way."""
    pattern = 'é\\"\u2028<&/\U0001f600 \t\n\x7f'
    unit_bytes = len(_json_bytes(pattern)) - 2
    whole, rest = divmod(size_bytes - 2, unit_bytes)
    return pattern * whole + "x" * rest


def _json_bytes(text: str) -> bytes:
    import json

    return json.dumps(text, ensure_ascii=False, separators=(",", ":")).encode()


asgi = app.asgi()
wsgi = app.wsgi()
