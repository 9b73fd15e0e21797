"""The embedded Postgres: one that belongs to this engine, with the programs of the `pgserver` wheel.

`open_embedded_postgres` chooses the place, makes the cluster if need be, starts or adopts the postmaster, and
stops it at the end. `serve_embedded_postgres` starts it again when it dies. Both raise only
EmbeddedPostgresError, with a sentence for the operator. Nothing here speaks SQL.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn
from urllib.parse import quote

import structlog
import trio

from engine.store.data_dir_lock import hold_data_dir
from engine.store.embedded_postgres_error import EmbeddedPostgresError
from engine.store.postgres_binaries import reachable_binaries
from engine.store.postgres_cluster import DATABASE, ROLE, ensure_cluster
from engine.store.postgres_home import MACHINE_DIR, choose_home
from engine.store.postgres_log import shrink_log
from engine.store.postgres_settings import PORT, postgres_command
from engine.store.postmaster import Postmaster, PostmasterPlan, start_or_adopt, stop
from engine.store.socket_dir import make_socket_dir, remove_socket_dir, socket_dir_for

log = structlog.get_logger(__name__)

_RESTART_WAIT_SECONDS_FIRST = 0.1
_RESTART_WAIT_SECONDS_MAX = 5.0
_LOG_LOOK_SECONDS = 60.0


@dataclass
class _Running:
    """The postmaster of now; replaced when it was started again."""

    postmaster: Postmaster


@dataclass(frozen=True)
class EmbeddedPostgres:
    """A Postgres that takes connections. `notes` are sentences for the operator about the choices made."""

    data_dir: Path
    socket_dir: Path
    port: int
    system_user: str | None
    database: str
    user: str
    notes: tuple[str, ...]
    plan: PostmasterPlan = field(repr=False)
    _running: _Running = field(repr=False)

    @property
    def pid(self) -> int:
        """Of the postmaster of now."""
        return self._running.postmaster.pid

    @property
    def adopted(self) -> bool:
        """Whether an earlier engine started this postmaster."""
        return self._running.postmaster.process is None

    @property
    def dsn(self) -> str:
        """For asyncpg and libpq alike."""
        socket = quote(str(self.socket_dir), safe="")
        return f"postgresql://{self.user}@/{self.database}?host={socket}&port={self.port}"

    async def wait_died(self) -> None:
        """Wait until the postmaster of now is gone."""
        await self._running.postmaster.wait_ended()


@asynccontextmanager
async def open_embedded_postgres(data_dir: Path | None, *, fsync: bool = True) -> AsyncIterator[EmbeddedPostgres]:
    """Run Postgres on `data_dir` (default: `pgdata` in DURABLE_HOME or ~/.durable) while the block lasts.

    `fsync=False` is for tests: a crash of the machine may then lose the data.
    """
    if sys.platform != "linux":
        raise EmbeddedPostgresError(
            "unsupported_system",
            "The embedded Postgres runs on Linux only. Set DATABASE_URL to a Postgres of your own "
            "(docker run -e POSTGRES_PASSWORD=durable -p 127.0.0.1:5432:5432 postgres:16).",
        )
    # In a thread: it starts small programs and may copy 30 MB.
    home = await trio.to_thread.run_sync(choose_home, data_dir)
    with hold_data_dir(home.data_dir, home.account):
        binaries = await trio.to_thread.run_sync(reachable_binaries, home.account, MACHINE_DIR)
        await ensure_cluster(home, binaries, fsync=fsync)
        socket_dir = socket_dir_for(home.data_dir, home.account)
        make_socket_dir(socket_dir, home.data_dir, home.account)
        command = postgres_command(binaries.postgres, home.data_dir, socket_dir, fsync=fsync)
        plan = PostmasterPlan(tuple(command), home.data_dir, home.account, home.data_dir / "postgres.log")
        await shrink_log(plan)
        embedded = EmbeddedPostgres(
            data_dir=home.data_dir,
            socket_dir=socket_dir,
            port=PORT,
            system_user=home.account.name,
            database=DATABASE,
            user=ROLE,
            notes=(*home.notes, *binaries.notes),
            plan=plan,
            _running=_Running(await start_or_adopt(plan)),
        )
        try:
            yield embedded
        finally:
            # Shielded, with the limits of `stop`: a cancelled engine must not leave a server that nobody
            # watches.
            with trio.CancelScope(shield=True):
                await stop(embedded._running.postmaster)
            embedded._running.postmaster.close()
            remove_socket_dir(socket_dir, home.data_dir)


async def serve_embedded_postgres(
    embedded: EmbeddedPostgres, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> NoReturn:
    """Start the postmaster again whenever it dies, until cancelled. Lives inside `open_embedded_postgres`."""
    task_status.started()
    while True:
        died = False
        with trio.move_on_after(_LOG_LOOK_SECONDS):
            await embedded.wait_died()
            died = True
        if died:
            await _restart(embedded)
        else:
            await shrink_log(embedded.plan)


async def _restart(embedded: EmbeddedPostgres) -> None:
    """Start the postmaster until it holds. A full disk is waited out: runs wait, nothing is lost."""
    wait_seconds = _RESTART_WAIT_SECONDS_FIRST
    log.error("postgres_died", pid=embedded.pid, its_log=str(embedded.plan.log))
    while True:
        try:
            make_socket_dir(embedded.socket_dir, embedded.data_dir, embedded.plan.account)
            restarted = await start_or_adopt(embedded.plan)
        except EmbeddedPostgresError as error:
            log.error("postgres_does_not_start", code=error.code, why=error.message, next_try_in_seconds=wait_seconds)
            await trio.sleep(wait_seconds)
            wait_seconds = min(wait_seconds * 2, _RESTART_WAIT_SECONDS_MAX)
            continue
        embedded._running.postmaster.close()
        embedded._running.postmaster = restarted
        log.warning("postgres_runs_again", pid=restarted.pid)
        return
