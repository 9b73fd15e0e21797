"""Composition root of the engine: opens what it needs in order, wires the parts together, runs the tree, and closes all again.

The only module that knows every other one. It decides nothing.
"""

from __future__ import annotations

import gc
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal
from uuid import UUID

import trio

from engine import __version__
from engine.api.server import create_api
from engine.api.services import EngineInfo, Services
from engine.core.ids import uuid7
from engine.logs import configure_logs
from engine.nursery.context import EngineContext, Limits
from engine.nursery.group_writers import HandingOver, make_event_writer, make_report_writer
from engine.nursery.inflight import InflightRuns
from engine.nursery.intake import Intake
from engine.nursery.task_tree import task_tree
from engine.nursery.tree import run_engine
from engine.store.admin_tokens import has_admin_token, register_dev_token
from engine.store.database import Database, DatabaseUnavailable, open_database
from engine.store.embedded_postgres import open_embedded_postgres, serve_embedded_postgres
from engine.store.engines import forget_engine, register_engine
from engine.store.hints import Hints
from engine.store.keyring import Keyring
from engine.store.migrate import migrate
from engine.store.postgres_home import durable_home
from engine.store.sealing import Sealer, open_sealer
from engine.transport.app_client import AppClient
from protocol.manifest import Workspace
from protocol.signing import Key

Mode = Literal["dev", "start"]

# New objects before the youngest are looked at, and how often then the older ones. Python's own: 700, 10, 10.
GARBAGE_THRESHOLDS = (20_000, 20, 50)


@dataclass(frozen=True)
class Settings:
    """What `durable dev` and `durable start` were asked for. `database_url` None: the embedded Postgres on `data_dir`."""

    mode: Mode
    host: str
    port: int
    database_url: str | None
    data_dir: Path | None
    app_urls: Sequence[str] = ()
    limits: Limits = field(default_factory=Limits)
    allowed_networks: Sequence[str] = ()
    dev_key: Key | None = None
    dev_token: str | None = None


class StartRefused(Exception):
    """The engine can not start as it was asked to; the sentence says what to set or do first."""

    code = "start_refused"


async def run(settings: Settings, say: Callable[[str], None]) -> None:
    """Run an engine until it has drained. `say` prints a line for the person in front."""
    _collect_garbage_rarely()
    configure_logs(settings.mode)
    async with open_store(settings, say) as database:
        await database.transact(migrate)
        if settings.dev_token is not None:
            await database.transact(register_dev_token, settings.dev_token)
        elif not await database.read(has_admin_token):
            raise StartRefused(
                "There is no admin token yet, so nobody could use this engine. Make one with `durable token create`, then start again."
            )
        await _serve(settings, database, say)


def _collect_garbage_rarely() -> None:
    """An engine makes many short-lived objects and few cycles: at Python's thresholds the collector took a seventh of its time."""
    gc.collect()
    # What was imported stays for good: never looked at again.
    gc.freeze()
    gc.set_threshold(*GARBAGE_THRESHOLDS)


@asynccontextmanager
async def open_store(settings: Settings, say: Callable[[str], None]) -> AsyncIterator[Database]:
    """The database that the settings name; the embedded Postgres is watched while it is open."""
    if settings.database_url is not None:
        async with _open_named_database(settings.database_url) as database:
            yield database
        return
    async with open_embedded_postgres(settings.data_dir) as embedded, trio.open_nursery() as watch:
        for note in embedded.notes:
            say(note)
        say(f"Postgres   embedded, data in {embedded.data_dir}")
        watch.start_soon(serve_embedded_postgres, embedded, name="embedded postgres")
        async with open_database(embedded.dsn) as database:
            yield database
        watch.cancel_scope.cancel()


@asynccontextmanager
async def _open_named_database(url: str) -> AsyncIterator[Database]:
    is_open = False
    try:
        async with open_database(url) as database:
            is_open = True
            yield database
    except* DatabaseUnavailable as errors:
        if is_open:
            raise
        cause: BaseException = errors
        while isinstance(cause, BaseExceptionGroup):
            cause = cause.exceptions[0]
        raise StartRefused(f"The Postgres of DATABASE_URL does not answer: {cause}. Start it, or correct the URL.") from None


async def _serve(settings: Settings, database: Database, say: Callable[[str], None]) -> None:
    engine_id: UUID = uuid7(int(time.time() * 1000), os.urandom(10))
    name = f"{socket.gethostname()}:{os.getpid()}"
    hints = Hints()
    database.on_run_news = hints.runs_have_news
    sealer = open_sealer(os.environ, home=durable_home() if settings.database_url is None else None)
    is_dev = settings.mode == "dev"
    inflight = InflightRuns(settings.limits.runs_in_flight_max, settings.limits.bytes_in_flight_max)
    intake = Intake(inflight)
    async with AppClient(allow_local=is_dev, allowed_networks=settings.allowed_networks) as apps:
        engine = EngineContext(
            engine_id=engine_id,
            name=name,
            database=database,
            events=make_event_writer(database, hints, HandingOver(engine_id, settings.limits.lease_seconds, intake)),
            reports=make_report_writer(database, hints, settings.limits.lease_seconds),
            hints=hints,
            inflight=inflight,
            intake=intake,
            apps=apps,
            keyring=Keyring(database, sealer, settings.dev_key),
            limits=settings.limits,
        )
        await database.transact(register_engine, engine_id, name)
        root = trio.lowlevel.current_task()
        api = create_api(_services(settings, engine, sealer, root))
        watched = [(url, Workspace("*", "dev")) for url in settings.app_urls]

        def on_listening(bind: str) -> None:
            say(f"API        {bind}")
            if is_dev and not watched:
                say("Apps       none yet: start one and name its URL, `durable dev --app-url http://127.0.0.1:8000/`")

        await run_engine(engine, api, settings.host, settings.port, watched, lambda text: say(f"App        {text}"), on_listening)
        with trio.move_on_after(2):
            await database.transact(forget_engine, engine_id)


def _services(settings: Settings, engine: EngineContext, sealer: Sealer, root: trio.lowlevel.Task) -> Services:
    async def is_ready() -> tuple[bool, str]:
        if engine.draining.is_set():
            return False, "draining"
        if not await engine.database.is_reachable():
            return False, "the database does not answer"
        return True, "ready"

    return Services(
        database=engine.database,
        events=engine.events,
        reports=engine.reports,
        hints=engine.hints,
        mode=settings.mode,
        keys=engine.keyring,
        sealer=sealer,
        is_draining=engine.draining.is_set,
        is_ready=is_ready,
        task_tree=lambda: task_tree(root),
        on_checkpoint=engine.inflight.news,
        on_alive=engine.inflight.lease_renewed,
        lease_seconds=settings.limits.lease_seconds,
        engine=EngineInfo(engine.engine_id, engine.name, __version__, datetime.now(UTC)),
    )


def main() -> None:
    """The `durable` command."""
    from engine.cli.commands import add_client_commands
    from engine.cli.engine_commands import engine_group

    add_client_commands(engine_group)
    sys.exit(engine_group(prog_name="durable"))


if __name__ == "__main__":
    main()
