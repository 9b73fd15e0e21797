"""Values by reference: fetched before they are delivered, stored before their op is sent."""

from typing import Any

import pytest
from msgspec import Raw
from msgspec.structs import replace

from durable.errors import EngineUnreachable, Refused
from durable.wire import CheckpointEntry, EntryAnswer
from tests.sdk_python.invocation_bench import (
    LOOPS,
    Wire,
    forever,
    function_of,
    invoke,
    new_engine,
    on_loop,
    output,
    pause,
    side_by_side,
    words,
)


class FakeValues:
    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.asked: list[list[str]] = []
        self.is_away = False
        self.is_unknown = False

    async def fetch(self, run_id: str, refs: list[str]) -> dict[str, Raw]:
        self.asked.append(refs)
        await pause()
        self._check()
        return {ref: Raw(self.values[ref]) for ref in refs}

    async def store(self, run_id: str, data: Raw) -> str:
        await pause()
        self._check()
        ref = f"v:{len(self.values)}"
        self.values[ref] = bytes(data)
        return ref

    def known_as(self, run_id: str, stored_ref: str, ref: str) -> None:
        self.values[ref] = self.values[stored_ref]

    def _check(self) -> None:
        if self.is_away:
            raise EngineUnreachable("no route")
        if self.is_unknown:
            raise Refused("not_found", "There is nothing here.", status=404)


@pytest.mark.parametrize("loop", LOOPS)
def test_entries_by_reference_are_fetched_together_and_delivered_in_their_order(loop: str) -> None:
    async def main() -> None:
        values, wire, order = FakeValues(), Wire(new_engine()), []
        for position, name in enumerate(["a", "b", "c"], 1):
            wire.engine._commit(name, "step")
            entry = wire.engine.memo[name]
            if name == "b":
                wire.engine.memo[name] = replace(entry, data=Raw(b'"B"'))
            else:
                wire.engine.memo[name] = replace(entry, ref=f"m:{position}", bytes=70_000)
                values.values[f"m:{position}"] = f'"{name.upper()}"'.encode()

        async def handler(event: Any, step: Any) -> list[str]:
            async def branch(name: str) -> None:
                order.append(await step.run(name, forever))

            await side_by_side(lambda: branch("c"), lambda: branch("b"), lambda: branch("a"))
            return [*order, await step.run("d", lambda: "D")]

        assert output(await invoke(function_of(handler), wire, values=values)) == ["A", "B", "C", "D"]
        assert [sorted(refs) for refs in values.asked] == [["m:1", "m:3"]]

    on_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_large_result_is_stored_first_and_its_op_has_the_reference(loop: str) -> None:
    async def main() -> None:
        values, wire = FakeValues(), Wire(new_engine())

        async def handler(event: Any, step: Any) -> int:
            large = await step.run("large", lambda: "x" * 70_000)
            small = await step.run("small", lambda: "y")
            return len(large) + len(small)

        async def take(entry: CheckpointEntry) -> EntryAnswer:
            (op,) = entry.ops
            assert op.ref == "v:0" and not isinstance(op.data, Raw)  # type: ignore[union-attr]
            wire.engine._commit("large", "step", data=Raw(values.values["v:0"]))
            return wire.engine.checkpoint(entry.generation, entry.known, [])  # with its data: it is known here already

        wire.before = take
        assert output(await invoke(function_of(handler), wire, values=values)) == 70_001
        assert values.asked == []

    on_loop(loop, main)


@pytest.mark.parametrize("what", ["store", "fetch"])
@pytest.mark.parametrize("loop", LOOPS)
def test_an_engine_that_is_away_for_values_cuts_the_invocation_off(loop: str, what: str) -> None:
    ran: list[str] = []

    async def main() -> None:
        values, wire = FakeValues(), Wire(new_engine())
        values.is_away = True
        if what == "fetch":
            wire.engine._commit("large", "step")
            wire.engine.memo["large"] = replace(wire.engine.memo["large"], ref="m:1", bytes=70_000)

        async def handler(event: Any, step: Any) -> None:
            await step.run("large", lambda: "x" * 70_000)
            await step.run("next", lambda: ran.append("next"))

        ended = await invoke(function_of(handler), wire, values=values)
        assert words(ended) == (["step", "yield"] if what == "store" else ["yield"])
        assert ran == [] and wire.entries == []
        if what == "store":
            assert ended is not None and len(bytes(ended.ops[0].data)) == 70_002  # type: ignore[union-attr]

    on_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_to_an_engine_that_stores_no_values_a_large_result_travels_whole(loop: str) -> None:
    async def main() -> None:
        values, wire = FakeValues(), Wire(new_engine())
        values.is_unknown = True

        async def handler(event: Any, step: Any) -> int:
            large = await step.run("large", lambda: "x" * 70_000)
            return len(large) + len(await step.run("small", lambda: "y"))

        assert output(await invoke(function_of(handler), wire, values=values)) == 70_001
        assert [len(bytes(op.data)) for op in wire.ops[:1]] == [70_002]  # type: ignore[union-attr]

    on_loop(loop, main)
