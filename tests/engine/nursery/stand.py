"""An engine's nursery on a real database, and apps that are real sockets: what the tests of calls stand on."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import trio
from msgspec import Raw

from engine.nursery.context import EngineContext, Limits
from engine.nursery.group_writers import make_event_writer, make_report_writer
from engine.nursery.inflight import InflightRuns
from engine.nursery.intake import Intake
from engine.nursery.run_call import start_call
from engine.store.hints import Hints
from engine.store.keyring import Keyring
from engine.store.sealing import Sealer
from engine.store.sync_app import sync_app
from engine.transport.app_client import AppClient
from protocol import signing
from protocol.calls import Ended, Invocation, Invoke, Started
from protocol.manifest import Batch, Capabilities, FunctionConfig, Manifest, Workspace
from protocol.messages import decode_call, encode
from protocol.ops import Complete, Op
from tests.engine.store.world import LEASE_SECONDS, World, function

DEV = Workspace("shop", "dev")
LINES = b"HTTP/1.1 200 OK\r\ncontent-type: application/vnd.durable.lines\r\ntransfer-encoding: chunked\r\n\r\n"


@asynccontextmanager
async def an_engine(world: World, runs_max: int = 256, **limits: Any) -> AsyncIterator[EngineContext]:
    """The parts of an engine that make calls, without the services that find work."""
    hints = Hints()
    key = signing.Key.parse(signing.new_key())
    async with AppClient(allow_local=True) as apps, trio.open_nursery() as writers:
        inflight = InflightRuns(runs_max, limits.get("bytes_in_flight_max", 64 << 20))
        engine = EngineContext(
            engine_id=world.engine_id,
            name="test",
            database=world.database,
            events=make_event_writer(world.database, hints),
            reports=make_report_writer(world.database, hints, LEASE_SECONDS),
            hints=hints,
            inflight=inflight,
            intake=Intake(inflight),
            apps=apps,
            keyring=Keyring(world.database, Sealer("s" * 32), key),
            limits=Limits(runs_in_flight_max=runs_max, **limits),
        )
        inflight.on_room = hints.run_due.give
        await writers.start(engine.reports.serve)
        async with trio.open_nursery() as calls:
            engine.intake.open(lambda call: start_call(engine, calls, call))
            yield engine
            calls.cancel_scope.cancel()
        writers.cancel_scope.cancel()


@asynccontextmanager
async def a_server(answer: Callable[[trio.SocketStream], Awaitable[None]]) -> AsyncIterator[str]:
    """A server that gives each connection to `answer`; its URL."""
    async with trio.open_nursery() as nursery:

        async def serve(stream: trio.SocketStream) -> None:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await answer(stream)

        listeners = await nursery.start(trio.serve_tcp, serve, 0)
        yield f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/"
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def an_app(world: World, answer: Callable[[trio.SocketStream], Awaitable[None]]) -> AsyncIterator[str]:
    """A server at the URL that the workspace has."""
    async with a_server(answer) as url:
        await world.rows("UPDATE app SET serve_url = $1 RETURNING 1", url)
        await world.rows("UPDATE workspace SET sync_version = sync_version + 1 RETURNING 1")
        yield url


@asynccontextmanager
async def a_batch_app(
    world: World,
    answer: Callable[[AppCall], Awaitable[None]],
    *functions: FunctionConfig,
    batch_max: int = 64,
    max_body: int = 4 << 20,
    has_alive: bool = False,
) -> AsyncIterator[App]:
    """An app of `world` that takes several invocations in a call; each call goes to `answer`."""
    app = App(answer)
    async with a_server(app.serve) as url:
        capabilities = Capabilities(True, Batch(batch_max), refs=False, alive=has_alive)
        manifest = Manifest(
            DEV, [1], list(functions or (function("f", "go"),)), capabilities=capabilities, deployment="batch", max_body=max_body
        )
        await world.database.transact(sync_app, world.workspace_id, url, manifest)
        yield app


@dataclass
class App:
    """Reads requests and hands each call to `answer`."""

    answer: Callable[[AppCall], Awaitable[None]]
    key: signing.Key | None = None
    calls: list[AppCall] = field(default_factory=list)
    connections: int = 0
    closed: int = 0

    def knows(self, engine: EngineContext) -> None:
        [self.key] = engine.keyring.may_be_anyones("dev")

    @property
    def sizes(self) -> list[int]:
        return [len(call.invocations) for call in self.calls]

    async def serve(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        received = b""
        try:
            while True:
                while b"\r\n\r\n" not in received:
                    if not (data := await stream.receive_some()):
                        return
                    received += data
                head, _, received = received.partition(b"\r\n\r\n")
                headers = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
                while len(received) < int(headers[b"content-length"]):
                    received += await stream.receive_some()
                body, received = received[: int(headers[b"content-length"])], received[int(headers[b"content-length"]) :]
                message = decode_call(body)
                assert isinstance(message, Invoke) and self.key is not None
                call = AppCall(stream, self.key, headers[b"webhook-id"].decode(), message.invocations, len(body))
                self.calls.append(call)
                await self.answer(call)
        finally:
            self.closed += 1


@dataclass
class AppCall:
    """A call as an app sees it, and the ways to answer it."""

    stream: trio.SocketStream
    key: signing.Key
    request_id: str
    invocations: list[Invocation]
    body_bytes: int

    async def begin(self) -> None:
        """The head, and that all have started."""
        await self.stream.send_all(LINES)
        await self.say(*(Started(each.run_id, each.generation) for each in self.invocations))

    async def end(self, invocation: Invocation, *ops: Op, known: int = 0) -> None:
        await self.say(Ended(invocation.run_id, invocation.generation, known, list(ops or (Complete(Raw(b'"done"')),))))

    async def say(self, *lines: Any) -> None:
        await self.raw(b"".join(signing.sign_line(self.key, self.request_id, int(time.time()), encode(line)) for line in lines))

    async def raw(self, data: bytes) -> None:
        """A chunk."""
        await self.stream.send_all(b"%x\r\n%b\r\n" % (len(data), data))

    async def finish(self) -> None:
        await self.stream.send_all(b"0\r\n\r\n")

    async def complete(self) -> None:
        """All that a healthy app says."""
        await self.begin()
        for invocation in self.invocations:
            await self.end(invocation)
        await self.finish()


async def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Return when the condition holds."""
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(0.005)


async def states(world: World) -> dict[str, int]:
    """How many runs are in which state."""
    rows = await world.rows(
        "SELECT coalesce(e.status, l.state) AS state, count(*) AS n FROM run r LEFT JOIN live_run l USING (run_id) "
        "LEFT JOIN run_end e USING (run_id) GROUP BY 1"
    )
    return {row["state"]: row["n"] for row in rows}
