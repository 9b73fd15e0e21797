"""A branch that the handler itself gives up ends as on replay, whatever else happens in the same turns; a clock that cancels
a step is refused, also when the step's body ends in the very turn in which the clock rings.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import trio

from tests.sdk_python.invocation_bench import (
    LOOPS,
    Wire,
    error_of,
    forever,
    function_of,
    invoke,
    is_trio,
    new_engine,
    on_loop,
    output,
    words,
)


async def beside(loser: Callable[[], Any], run: Callable[[Callable[[], Any]], Any]) -> Any:
    """Run `loser` in a task beside `run(cancel)`; `cancel` gives it up and waits for nothing."""
    if is_trio():
        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope()

            async def lose() -> None:
                with scope:
                    await loser()

            nursery.start_soon(lose)
            return await run(scope.cancel)
    task = asyncio.ensure_future(loser())
    return await run(task.cancel)


@pytest.mark.parametrize("losing", ["body", "wait", "retry"])
@pytest.mark.parametrize("loop", LOOPS)
def test_a_loser_is_given_up_in_the_turn_in_which_the_next_step_is_called(loop: str, losing: str) -> None:
    async def handler(event: Any, step: Any) -> list[str]:
        async def lose() -> None:
            if losing == "wait":
                await step.wait_for_event("loser", event="x", timeout="1d")
            else:
                await step.run("loser", forever if losing == "body" else fail)

        async def win(cancel: Callable[[], Any]) -> list[str]:
            first = await step.run("winner", lambda: "first")
            cancel()
            return [first, await step.run("next", lambda: "second")]

        got: list[str] = await beside(lose, win)
        return got

    def fail() -> None:
        raise ValueError("by hand")

    async def main() -> None:
        wire = Wire(new_engine())
        function = function_of(handler)
        for _ in range(3):
            assert output(await invoke(function, wire)) == ["first", "second"]
        assert list(wire.engine.memo) == ["winner", "next"]

    on_loop(loop, main)


def test_a_clock_that_rings_in_the_turn_in_which_the_body_ends_is_told_as_such() -> None:
    """What came first is a matter of chance, so neither may count as the handler's own doing."""

    async def main() -> None:
        async def handler(event: Any, step: Any) -> str:
            loop, task = asyncio.get_running_loop(), asyncio.current_task()
            assert task is not None

            async def body() -> None:
                ready = loop.create_future()

                def ring() -> None:
                    ready.set_result(None)
                    task.cancel()

                loop.call_later(0.01, ring)
                await ready

            try:
                await step.run("a", body)
            except asyncio.CancelledError:
                task.uncancel()
                return "cancelled"
            return "went on"

        ended = await invoke(function_of(handler), Wire(new_engine()))
        assert words(ended) == ["step", "fail"] and "no step" in error_of(ended)["message"]

    on_loop("asyncio", main)
