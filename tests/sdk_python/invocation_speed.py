"""How much CPU the SDK takes for an invocation of three steps, between the decoded `Invocation` and the `Ended`.

    .venv/bin/python -m tests.sdk_python.invocation_speed [asyncio|trio] [side by side] [profile]

The sender answers at once, so nothing but the SDK, the loop and the bodies is measured. No test: numbers depend on the machine.
"""

import asyncio
import cProfile
import pstats
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import trio
from msgspec import Raw

from durable.function import Function
from durable.run_invocation import run_invocation
from durable.runtime import current_runtime
from durable.wire import CheckpointEntry, Ended, EntryAnswer, Invocation, MemoEntry, StepOp, WireEvent
from tests.sdk_python.invocation_bench import function_of

ROUNDS = 12
DATA = Raw(b'{"id":7,"plan":"team","tenantId":"acme"}')
RECEIVED_AT = datetime(2026, 1, 31, tzinfo=UTC)


class InstantSender:
    """Commits everything and answers at once. It never looks at what it takes."""

    def __init__(self) -> None:
        self.entries = 0

    def answer(self, entry: CheckpointEntry) -> EntryAnswer:
        self.entries += 1
        resolved = [
            MemoEntry(op.id, "step", entry.known + number) for number, op in enumerate(entry.ops, 1) if isinstance(op, StepOp)
        ]
        return EntryAnswer(entry.run_id, entry.generation, "ok", lease_seconds=30.0, resolved=resolved)

    async def submit(self, entry: CheckpointEntry, *, deadline: float) -> EntryAnswer:
        return self.answer(entry)

    def submit_soon(self, entry: CheckpointEntry, deadline: float, on_answer: Callable[[Any], None]) -> None:
        on_answer(self.answer(entry))


async def three_steps(event: Any, step: Any) -> Any:
    user = await step.run("load-user", load, event.data["id"])
    plan = await step.run("choose-plan", load, user["id"])
    return await step.run("welcome", load, plan["id"])


async def load(number: int) -> dict[str, Any]:
    return {"id": number, "name": "someone"}


def invocation_of(number: int) -> Invocation:
    event = WireEvent("evt-1", "user.created", DATA, RECEIVED_AT)
    return Invocation(f"01990a3c-7d1e-7c3a-9b52-{number:012d}", 1, 1, "f", event)


async def one(function: Function, number: int, sender: InstantSender) -> Ended | None:
    return await run_invocation(function, invocation_of(number), sender, received_at=time.monotonic(), runtime=current_runtime())


async def some(function: Function, count: int, sender: InstantSender) -> None:
    """`count` invocations side by side."""
    if trio.lowlevel.in_trio_run():
        async with trio.open_nursery() as nursery:
            for number in range(count):
                nursery.start_soon(one, function, number, sender)
    else:
        await asyncio.gather(*(one(function, number, sender) for number in range(count)))


async def measure(side_by_side: int) -> tuple[float, float]:
    """Microseconds of CPU per invocation (the best round of some), and checkpoints per invocation."""
    function, sender = function_of(three_steps), InstantSender()
    count = 2_000 // side_by_side
    best_seconds = float("inf")
    await some(function, side_by_side, sender)
    sender.entries = 0
    for _ in range(ROUNDS):
        began = time.process_time()
        for _ in range(count):
            await some(function, side_by_side, sender)
        best_seconds = min(best_seconds, (time.process_time() - began) / (count * side_by_side))
    return best_seconds * 1e6, sender.entries / (ROUNDS * count * side_by_side)


def main() -> None:
    words = sys.argv[1:]
    loops = [word for word in words if word in ("asyncio", "trio")] or ["asyncio", "trio"]
    sizes = [int(word) for word in words if word.isdigit()] or [1, 64, 256]
    profile = cProfile.Profile() if "profile" in words else None
    for loop in loops:
        for size in sizes:
            run: Callable[[], tuple[float, float]] = (
                (lambda size=size: trio.run(measure, size)) if loop == "trio" else (lambda size=size: asyncio.run(measure(size)))  # type: ignore[misc]
            )
            micros, checkpoints = run() if profile is None else profile.runcall(run)
            print(f"{loop:8} {size:4} side by side: {micros:7.1f} µs per invocation, {checkpoints:.2f} checkpoints")
    if profile is not None:
        pstats.Stats(profile).sort_stats("tottime").print_stats(45)


if __name__ == "__main__":
    main()
