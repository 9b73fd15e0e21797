"""The invocations that run on one event loop, and the checkpoint sender that serves them.

`Serving` lives as long as somebody uses it: the server's lifespan, a request, an invocation. The last one to leave
ends the sender, so nothing is left behind, also where no lifespan exists (a mounted app). An invocation is a task
here and not of its request: a request may be cancelled when its client leaves, the handler goes on.
"""

import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

import anyio

from durable.alive import CallSoon, HeldRun
from durable.error_words import error_words
from durable.errors import EngineUnreachable
from durable.event_loop import call_soon_on, current_loop
from durable.executor import Execution
from durable.loop_tasks import LoopTasks, open_loop_tasks
from durable.read_call import unknown_function
from durable.reply_lines import ReplyLines
from durable.run_invocation import run_invocation
from durable.runtime import Runtime, current_runtime
from durable.sender import CheckpointSender
from durable.values import EngineValues, ValueCache
from durable.wire import CheckpointEntry, Ended, FailOp, Invocation, UnknownFunctionOp, WireRefusal

if TYPE_CHECKING:
    from durable.app import App

logger: Final = logging.getLogger("durable")

# How long the end of an invocation is sent again when the engine is away. The lease is over before that.
END_SECONDS_MAX: Final = 60.0
# How long a server that stops gives invocations that no request waits for any more.
DRAIN_SECONDS_MAX: Final = 20.0
# How long cancelled invocations then may take for their `finally` blocks.
UNWIND_SECONDS_MAX: Final = 5.0

# Of the whole process.
_VALUE_CACHE: Final = ValueCache()


class Servings:
    """The servings of an app, one per event loop."""

    def __init__(self, app: "App") -> None:
        self._app = app
        self._by_loop: WeakKeyDictionary[object, Serving] = WeakKeyDictionary()

    def here(self) -> "Serving":
        """That of this loop."""
        loop = current_loop()
        serving = self._by_loop.get(loop)
        if serving is None:
            serving = self._by_loop[loop] = Serving(self._app)
        return serving


class Serving:
    """One loop's invocations. All methods run on that loop."""

    def __init__(self, app: "App") -> None:
        self._app = app
        self._user_count = 0
        self._invocation_count = 0
        self._became_idle = anyio.Event()
        self._tasks: LoopTasks | None = None
        self._open: _Open | None = None

    @asynccontextmanager
    async def used(self) -> AsyncIterator["Serving"]:
        """Keeps the serving open while inside."""
        self._enter()
        try:
            yield self
        finally:
            self._leave()

    def start(self, invocation: Invocation, lines: ReplyLines, received_at: float) -> None:
        """Run an invocation; its end goes into `lines`, or by checkpoint when they are closed."""
        assert self._tasks is not None, "Serving.start() outside of used()"
        self._enter()
        self._invocation_count += 1
        self._tasks.start(self._run, invocation, lines, received_at)

    def send_ends(self, ends: list[Ended]) -> None:
        """Say these ends by checkpoint, because the connection broke that should have carried them."""
        assert self._tasks is not None, "Serving.send_ends() outside of used()"
        for ended in ends:
            self._enter()
            self._tasks.start(self._send_one_end, ended)

    async def drain(self) -> None:
        """Let what runs come to its end, up to DRAIN_SECONDS_MAX, then cancel it: its run is handed over again."""
        with anyio.move_on_after(DRAIN_SECONDS_MAX):
            while self._invocation_count:
                await self._became_idle.wait()
        if self._invocation_count and self._tasks is not None:
            logger.warning("%d invocations are cancelled: the server stops", self._invocation_count)
            self._tasks.cancel()
            with anyio.move_on_after(UNWIND_SECONDS_MAX):
                while self._invocation_count:
                    await self._became_idle.wait()

    def _enter(self) -> None:
        if self._user_count == 0:
            self._tasks = open_loop_tasks()
            workspace, client = self._app.settings().workspace, self._app.client
            self._open = _Open(
                current_runtime(),
                CheckpointSender(client.post, workspace),
                EngineValues(client.call, workspace, self._tasks.start, _VALUE_CACHE),
                call_soon_on(current_loop()),
            )
            self._tasks.start(_serve, self._open.sender)
        self._user_count += 1

    def _leave(self) -> None:
        self._user_count -= 1
        if self._user_count == 0 and self._tasks is not None:
            self._tasks.cancel()
            self._tasks = self._open = None

    async def _run(self, invocation: Invocation, lines: ReplyLines, received_at: float) -> None:
        is_said = False
        try:
            ended = await self._end_of(invocation, received_at)
            is_said = lines.put(ended)
            if not is_said:
                is_said = True
                await self._send_end(ended)
        finally:
            if not is_said:
                lines.put(None)  # cancelled: the reply must not wait for it
            self._invocation_count -= 1
            if not self._invocation_count:
                self._became_idle.set()
                self._became_idle = anyio.Event()
            self._leave()

    async def _end_of(self, invocation: Invocation, received_at: float) -> Ended:
        function = self._app.functions.get(invocation.function)
        if function is None:
            logger.warning("the engine asked for the function %.128r, which this app does not have", invocation.function)
            return unknown_function(invocation)
        assert self._open is not None
        held: list[HeldRun] = []

        def hold(execution: Execution) -> None:
            assert self._open is not None
            held.append(self._app.alive.hold(execution, invocation.lease_seconds, self._open.call_soon))

        try:
            ended = await run_invocation(
                function,
                invocation,
                self._open.sender,
                received_at=received_at,
                runtime=self._open.runtime,
                values=self._open.values,
                on_started=hold,
            )
            # Stale or cancelled: nothing to say but that its place is free, which in a shared call nobody else could tell.
            return ended or Ended(invocation.run_id, invocation.generation, 0, [])
        except Exception as error:
            # A bug of the SDK: the engine must still hear an end, or the run would wait for its lease.
            logger.exception("run %s, function %s: the invocation broke", invocation.run_id, invocation.function)
            known = max((entry.position for entry in invocation.steps), default=0)
            return Ended(invocation.run_id, invocation.generation, known, [FailOp(error=error_words(error), retriable=True)])
        finally:
            for each in held:
                self._app.alive.release(each)

    async def _send_one_end(self, ended: Ended) -> None:
        try:
            await self._send_end(ended)
        finally:
            self._leave()

    async def _send_end(self, ended: Ended) -> None:
        assert self._open is not None
        if any(isinstance(op, UnknownFunctionOp) for op in ended.ops):
            return  # belongs into a reply only; the lease's end says as much
        entry = CheckpointEntry(ended.run_id, ended.generation, ended.known, ended.ops, ends=True)
        deadline = time.monotonic() + END_SECONDS_MAX
        try:
            answer = await self._open.sender.submit(entry, deadline=deadline)
            if answer.status == "refused":
                error = answer.error if isinstance(answer.error, WireRefusal) else WireRefusal("refused", "The end was refused.")
                words = error_words(None, name="Refused", message=error.message, code=error.code)
                op = FailOp(error=words, retriable=error.code == "code_mismatch")
                entry = CheckpointEntry(ended.run_id, ended.generation, ended.known, [op], ends=True)
                await self._open.sender.submit(entry, deadline=deadline)
        except EngineUnreachable as error:
            logger.warning("run %s: its end did not reach the engine, which hands it over again: %s", ended.run_id, error)


@dataclass(frozen=True, slots=True)
class _Open:
    """What the invocations of one loop share, for as long as the serving is used."""

    runtime: Runtime
    sender: CheckpointSender
    values: EngineValues
    call_soon: CallSoon


async def _serve(sender: CheckpointSender) -> None:
    """Serve the sender, whatever happens: without it every invocation would wait for ever."""
    while True:
        try:
            await sender.serve()
        except Exception:
            logger.exception("the checkpoint sender broke; it is started again")
            await anyio.sleep(1)
