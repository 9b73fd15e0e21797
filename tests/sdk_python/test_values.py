"""Values by reference: asked for in groups, once for all who wait, kept in a bounded cache; and a whole run with a large memo."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest
from msgspec import Raw

import durable
from durable import invocations
from durable.errors import EngineUnreachable, Refused
from durable.loop_tasks import open_loop_tasks
from durable.values import EngineValues, ValueCache
from durable.wire import Workspace
from tests.sdk_python.app_servers import ASGI_SERVERS
from tests.sdk_python.fake_engine import FakeEngine, environment_of
from tests.sdk_python.invocation_bench import LOOPS, on_loop

RUN = "01990a3c-7d1e-7c3a-9b52-6f1f0e7f9a10"


class FakeAnswers:
    """The engine's side: values by reference, so many an answer; `open` lets the answers go."""

    def __init__(self, values: dict[str, Any], *, values_max: int = 1000) -> None:
        self.values = values
        self.values_max = values_max
        self.asked: list[list[Any]] = []
        self.open = anyio.Event()
        self.open.set()

    async def call(self, path: str, body: bytes, message_type: str) -> bytes:
        assert (path, message_type) == ("/v1/values", "values")
        message = json.loads(body)
        assert message["run_id"] == RUN
        self.asked.append(message.get("fetch") or message["store"])
        await self.open.wait()
        if "store" in message:
            refs = [f"v:{len(self.asked)}:{n}" for n in range(len(message["store"]))]
            return json.dumps({"type": "values", "refs": refs}).encode()
        if not self.values.keys() >= set(message["fetch"]):
            raise Refused("unknown_ref", "No such value.", status=404)
        found = [{"ref": ref, "data": self.values[ref]} for ref in message["fetch"][: self.values_max]]
        return json.dumps({"type": "values", "values": found}).encode()


async def with_values(engine: FakeAnswers, main: Callable[[EngineValues], Any], cache: ValueCache | None = None) -> None:
    tasks = open_loop_tasks()
    try:
        await main(EngineValues(engine.call, Workspace("shop", "prod"), tasks.start, cache or ValueCache()))
    finally:
        tasks.cancel()


@pytest.mark.parametrize("loop", LOOPS)
def test_several_who_wait_for_one_value_share_one_question(loop: str) -> None:
    async def main() -> None:
        engine = FakeAnswers({"a": 1, "b": 2})
        got: list[dict[str, Raw]] = []

        async def ask(values: EngineValues, *refs: str) -> None:
            got.append(await values.fetch(RUN, list(refs)))

        async def run(values: EngineValues) -> None:
            async with anyio.create_task_group() as group:
                for _ in range(5):
                    group.start_soon(ask, values, "a")
                group.start_soon(ask, values, "a", "b")
            assert await values.fetch(RUN, ["b", "a"]) == {"a": Raw(b"1"), "b": Raw(b"2")}

        await with_values(engine, run)
        assert engine.asked == [["a", "b"]]
        assert len(got) == 6 and all(bytes(each["a"]) == b"1" for each in got)

    on_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_what_does_not_fit_into_an_answer_is_asked_for_again(loop: str) -> None:
    async def main() -> None:
        engine = FakeAnswers({f"r{n}": n for n in range(10)}, values_max=4)

        async def run(values: EngineValues) -> None:
            assert len(await values.fetch(RUN, list(engine.values))) == 10

        await with_values(engine, run)
        assert [len(refs) for refs in engine.asked] == [10, 6, 2]

    on_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_an_unknown_reference_fails_alone(loop: str) -> None:
    async def main() -> None:
        engine = FakeAnswers({"a": 1})
        refused: list[str] = []

        async def ask(values: EngineValues, ref: str) -> None:
            try:
                assert bytes((await values.fetch(RUN, [ref]))[ref]) == b"1"
            except Refused as error:
                refused.append(f"{ref} {error.code}")

        async def run(values: EngineValues) -> None:
            async with anyio.create_task_group() as group:
                for ref in ("a", "gone"):
                    group.start_soon(ask, values, ref)

        await with_values(engine, run)
        assert refused == ["gone unknown_ref"]

    on_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_who_leaves_takes_nothing_from_the_others_and_the_end_fails_all(loop: str) -> None:
    async def main() -> None:
        engine = FakeAnswers({"a": 1})
        engine.open = anyio.Event()
        tasks = open_loop_tasks()
        values = EngineValues(engine.call, Workspace("shop", "prod"), tasks.start, ValueCache())
        with anyio.move_on_after(0.02):
            await values.fetch(RUN, ["a"])
        failed: list[str] = []

        async def ask() -> None:
            try:
                await values.fetch(RUN, ["a"])
            except EngineUnreachable as error:
                failed.append(str(error))

        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            await anyio.sleep(0.02)
            tasks.cancel()
        assert failed == ["The app stops serving."] and engine.asked == [["a"]]

    on_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_values_are_stored_together_and_each_gets_its_reference(loop: str) -> None:
    async def main() -> None:
        engine = FakeAnswers({})
        refs: dict[int, str] = {}

        async def store(values: EngineValues, n: int) -> None:
            refs[n] = await values.store(RUN, Raw(b"%d" % n))

        async def run(values: EngineValues) -> None:
            async with anyio.create_task_group() as group:
                for n in range(5):
                    group.start_soon(store, values, n)

        await with_values(engine, run)
        [stored] = engine.asked
        assert {stored[int(ref.rpartition(":")[2])]: ref for ref in refs.values()} == refs

    on_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_what_was_stored_here_is_not_fetched_when_the_memo_names_it(loop: str) -> None:
    async def main() -> None:
        engine = FakeAnswers({})

        async def run(values: EngineValues) -> None:
            stored_ref = await values.store(RUN, Raw(b'"made here"'))
            values.known_as(RUN, stored_ref, "m:1")
            values.known_as(RUN, "v:of another process", "m:2")
            assert await values.fetch(RUN, ["m:1"]) == {"m:1": Raw(b'"made here"')}

        await with_values(engine, run)
        assert len(engine.asked) == 1, "only the store"

    on_loop(loop, main)


def test_the_cache_keeps_what_was_used_last_within_its_bytes() -> None:
    cache = ValueCache(bytes_max=100)
    for name in "abcd":
        cache.put(RUN, name, b"x" * 30)
        assert cache.get(RUN, "a") is not None
    assert cache.get(RUN, "b") is None and cache.get(RUN, "c") is not None and cache.get(RUN, "d") is not None
    assert cache.size_bytes == 90
    cache.put(RUN, "huge", b"x" * 101)
    assert cache.get(RUN, "huge") is None and cache.size_bytes == 90
    assert cache.get("another run", "a") is None


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeEngine]:
    monkeypatch.setattr(invocations, "_VALUE_CACHE", ValueCache())
    with environment_of(FakeEngine(), monkeypatch) as engine:
        yield engine


@pytest.mark.parametrize("server", ASGI_SERVERS.values(), ids=ASGI_SERVERS)
def test_a_memo_of_fifty_megabytes_travels_by_reference(server: Callable[[Any], Any], engine: FakeEngine) -> None:
    app = durable.App("shop")
    text = "x" * (100 << 10)

    @app.function(trigger=durable.Event("x"))
    async def large(event: durable.ReceivedEvent, step: durable.Step) -> Any:
        size = 0
        for n in range(500):
            size += len(await step.run(f"s{n}", lambda: "never"))
        return size

    engine.ref_bytes_min = 64 << 10
    with server(app.asgi()) as url:
        run = engine.create_run("large", {"id": "e", "name": "x", "data": None})
        for n in range(500):
            run.remember(f"s{n}", "step", data=text)
        assert len(json.dumps(engine.invoke_message(run))) < 200_000
        engine.app_url = url
        engine.drive(run)
        assert engine.wait_for_end(run).output == 500 * len(text)
        asked = [ref for refs in engine.fetches for ref in refs]
        assert len(set(asked)) == 500
        # The same memo again, from the cache.
        engine.fetches.clear()
        with engine._changed:
            run.status, run.is_ready, run.is_leased, run.output = "queued", True, False, None
        engine.drive(run)
        assert engine.wait_for_end(run).output == 500 * len(text)
        assert engine.fetches == []
    assert invocations._VALUE_CACHE.size_bytes <= 64 << 20
