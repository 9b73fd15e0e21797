"""The checkpoint sender: groups, tries again, gives each run its own answer, on asyncio and Trio."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trio
from msgspec import Raw

from durable import sender as sender_module
from durable.errors import EngineUnreachable, Refused
from durable.sender import CheckpointSender
from durable.wire import CheckpointEntry, CompleteOp, EntryAnswer, Workspace
from tests.sdk_python.invocation_bench import LOOPS, is_trio, on_loop, pause, side_by_side, until

WORKSPACE = Workspace("shop", "dev")


class Engine:
    """What stands behind `post`: answers `ok`, unless `behave` raises or answers first."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.at_once = 0
        self.behave: Callable[[dict[str, Any]], Awaitable[bytes | None]] | None = None

    async def post(self, path: str, body: bytes, type: str) -> bytes:
        assert (path, type) == ("/v1/checkpoint", "checkpoint")
        assert self.at_once == 0, "one request at a time"
        self.at_once += 1
        try:
            message = json.loads(body)
            self.messages.append(message)
            await pause()
            if self.behave is not None and (answer := await self.behave(message)) is not None:
                return answer
            return answer_of(message)
        finally:
            self.at_once -= 1


def answer_of(message: dict[str, Any], leave_out: int = 0) -> bytes:
    entries = [
        {"run_id": entry["run_id"], "generation": entry["generation"], "status": "ok", "lease_seconds": 30}
        for entry in message["entries"][leave_out:]
    ]
    return json.dumps({"type": "checkpoint", "entries": entries}).encode()


def entry_of(run: int | str, ops: Any = (), known: int = 0) -> CheckpointEntry:
    return CheckpointEntry(f"run-{run}", 1, known, list(ops))


def soon(seconds: float = 10) -> float:
    return time.monotonic() + seconds


@asynccontextmanager
async def serving(sender: CheckpointSender) -> AsyncIterator[None]:
    if is_trio():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sender.serve)
            yield
            nursery.cancel_scope.cancel()
    else:
        task = asyncio.create_task(sender.serve())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


def with_sender(loop: str, story: Callable[[CheckpointSender, Engine], Awaitable[None]]) -> Engine:
    engine = Engine()

    async def main() -> None:
        sender = CheckpointSender(engine.post, WORKSPACE)
        async with serving(sender):
            await story(sender, engine)

    on_loop(loop, main)
    return engine


@pytest.mark.parametrize("loop", LOOPS)
def test_what_gathers_during_a_request_travels_in_the_next(loop: str) -> None:
    answers: list[EntryAnswer] = []

    async def story(sender: CheckpointSender, engine: Engine) -> None:
        async def submit(run: int) -> None:
            answers.append(await sender.submit(entry_of(run), deadline=soon()))

        await side_by_side(*[lambda run=run: submit(run) for run in range(100)])  # type: ignore[misc]

    engine = with_sender(loop, story)
    assert sorted(answer.run_id for answer in answers) == sorted(f"run-{run}" for run in range(100))
    assert len(engine.messages) <= 3
    assert engine.messages[0]["workspace"] == {"app": "shop", "env": "dev"}
    assert engine.messages[0]["type"] == "checkpoint"


@pytest.mark.parametrize("loop", LOOPS)
def test_one_message_never_has_two_entries_of_a_run(loop: str) -> None:
    async def story(sender: CheckpointSender, engine: Engine) -> None:
        await side_by_side(
            *[lambda known=known: sender.submit(entry_of(known % 3, known=known), deadline=soon()) for known in range(12)]  # type: ignore[misc]
        )

    engine = with_sender(loop, story)
    sent = [[entry["run_id"] for entry in message["entries"]] for message in engine.messages]
    assert all(len(set(runs)) == len(runs) for runs in sent)
    assert sum(map(len, sent)) == 12


@pytest.mark.parametrize("loop", LOOPS)
def test_groups_keep_their_limits(loop: str) -> None:
    big = [CompleteOp(Raw(b'"' + b"x" * (3 << 20) + b'"'))]

    async def story(sender: CheckpointSender, engine: Engine) -> None:
        small = [lambda run=run: sender.submit(entry_of(run), deadline=soon()) for run in range(1_200)]
        large = [lambda run=run: sender.submit(entry_of(f"big-{run}", big), deadline=soon()) for run in range(8)]
        await side_by_side(*small, *large)  # type: ignore[arg-type]

    engine = with_sender(loop, story)
    assert max(len(message["entries"]) for message in engine.messages) <= sender_module.ENTRIES_MAX
    assert max(len(json.dumps(message)) for message in engine.messages) <= sender_module.MESSAGE_BYTES_MAX * 1.01
    assert sum(len(message["entries"]) for message in engine.messages) == 1_208


@pytest.mark.parametrize(
    "trouble",
    [EngineUnreachable("refused"), Refused("overloaded", "slow down", status=429), Refused("starting", "not yet", status=503)],
    ids=["unreachable", "429", "503"],
)
@pytest.mark.parametrize("loop", LOOPS)
def test_a_request_that_was_not_taken_is_sent_again_with_the_same_entries(loop: str, trouble: Exception) -> None:
    answers: list[EntryAnswer] = []

    async def story(sender: CheckpointSender, engine: Engine) -> None:
        async def behave(message: dict[str, Any]) -> bytes | None:
            if len(engine.messages) < 3:
                raise trouble
            return None

        engine.behave = behave
        answers.append(await sender.submit(entry_of(1), deadline=soon()))

    engine = with_sender(loop, story)
    assert [answer.status for answer in answers] == ["ok"]
    assert engine.messages[0] == engine.messages[1] == engine.messages[2]
    assert len(engine.messages) == 3


@pytest.mark.parametrize("loop", LOOPS)
def test_an_entry_is_given_up_at_its_deadline_and_the_others_go_on(loop: str) -> None:
    outcomes: list[str] = []

    async def story(sender: CheckpointSender, engine: Engine) -> None:
        async def behave(message: dict[str, Any]) -> bytes | None:
            if len(message["entries"]) > 1 or message["entries"][0]["run_id"] == "run-short":
                raise EngineUnreachable("away")
            return None

        async def submit(run: str, seconds: float) -> None:
            try:
                outcomes.append(f"{run} {(await sender.submit(entry_of(run), deadline=soon(seconds))).status}")
            except EngineUnreachable:
                outcomes.append(f"{run} unreachable")

        engine.behave = behave
        await side_by_side(lambda: submit("short", 0.3), lambda: submit("long", 10))

    with_sender(loop, story)
    assert sorted(outcomes) == ["long ok", "short unreachable"]


@pytest.mark.parametrize("loop", LOOPS)
def test_one_refused_entry_does_not_spoil_the_others(loop: str) -> None:
    answers: dict[str, EntryAnswer] = {}

    async def story(sender: CheckpointSender, engine: Engine) -> None:
        async def behave(message: dict[str, Any]) -> bytes | None:
            if any(entry["run_id"] == "run-2" for entry in message["entries"]):
                raise Refused("bad_op", "The op is wrong.", "Mend it.", status=400)
            return None

        async def submit(run: int) -> None:
            answers[f"run-{run}"] = await sender.submit(entry_of(run), deadline=soon())

        engine.behave = behave
        await side_by_side(*[lambda run=run: submit(run) for run in range(5)])  # type: ignore[misc]

    with_sender(loop, story)
    assert {run: answer.status for run, answer in answers.items()} == {
        f"run-{run}": "refused" if run == 2 else "ok" for run in range(5)
    }
    assert answers["run-2"].error.code == "bad_op"  # type: ignore[union-attr]


@pytest.mark.parametrize("loop", LOOPS)
def test_a_wrong_key_is_told_at_once_and_fails_no_function(loop: str) -> None:
    async def story(sender: CheckpointSender, engine: Engine) -> None:
        async def behave(message: dict[str, Any]) -> bytes | None:
            raise Refused("bad_signature", "The signature does not fit.", status=401)

        engine.behave = behave
        began = time.monotonic()
        with pytest.raises(EngineUnreachable, match="bad_signature"):
            await sender.submit(entry_of(1), deadline=soon(60))
        assert time.monotonic() - began < 5

    with_sender(loop, story)


@pytest.mark.parametrize("loop", LOOPS)
def test_an_answer_that_leaves_an_entry_out_is_no_answer(loop: str) -> None:
    async def story(sender: CheckpointSender, engine: Engine) -> None:
        async def behave(message: dict[str, Any]) -> bytes | None:
            return answer_of(message, leave_out=1) if len(engine.messages) == 1 else None

        engine.behave = behave
        assert (await sender.submit(entry_of(1), deadline=soon())).status == "ok"

    assert len(with_sender(loop, story).messages) == 2


@pytest.mark.parametrize("loop", LOOPS)
def test_an_entry_that_comes_before_serving_waits_for_it(loop: str) -> None:
    answers: list[EntryAnswer] = []
    engine = Engine()

    async def main() -> None:
        sender = CheckpointSender(engine.post, WORKSPACE)

        async def submit() -> None:
            answers.append(await sender.submit(entry_of(1), deadline=soon()))

        async def serve_later() -> None:
            for _ in range(20):
                await pause()
            async with serving(sender):
                await until(lambda: bool(answers))

        await side_by_side(submit, serve_later)

    on_loop(loop, main)
    assert answers[0].status == "ok"


@pytest.mark.parametrize("loop", LOOPS)
def test_without_serving_the_deadline_ends_the_wait(loop: str) -> None:
    async def main() -> None:
        with pytest.raises(EngineUnreachable):
            await CheckpointSender(Engine().post, WORKSPACE).submit(entry_of(1), deadline=soon(0.05))

    on_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_when_serving_ends_nobody_waits_for_ever(loop: str) -> None:
    outcomes: list[str] = []

    async def main() -> None:
        engine = Engine()
        sender = CheckpointSender(engine.post, WORKSPACE)

        async def never(message: dict[str, Any]) -> bytes | None:
            await until(lambda: False)
            return None

        async def submit(run: int) -> None:
            try:
                await sender.submit(entry_of(run), deadline=soon(60))
            except EngineUnreachable:
                outcomes.append(f"run-{run}")

        async def stop() -> None:
            async with serving(sender):
                await until(lambda: engine.at_once == 1)

        engine.behave = never
        await side_by_side(lambda: submit(1), lambda: submit(2), stop)

    on_loop(loop, main)
    assert sorted(outcomes) == ["run-1", "run-2"]


@pytest.mark.parametrize("loop", LOOPS)
def test_a_submit_that_is_cancelled_leaves_the_queue(loop: str) -> None:
    async def story(sender: CheckpointSender, engine: Engine) -> None:
        async def slow(message: dict[str, Any]) -> bytes | None:
            for _ in range(30):
                await pause()
            return None

        async def give_up_soon() -> None:
            if is_trio():
                with trio.move_on_after(0):
                    await sender.submit(entry_of("gone"), deadline=soon())
            else:
                task = asyncio.create_task(sender.submit(entry_of("gone"), deadline=soon()))
                await pause()
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

        engine.behave = slow
        await side_by_side(lambda: sender.submit(entry_of(1), deadline=soon()), give_up_soon)
        await sender.submit(entry_of(2), deadline=soon())

    engine = with_sender(loop, story)
    assert len([message for message in engine.messages if message["entries"][0]["run_id"] == "run-2"]) == 1
