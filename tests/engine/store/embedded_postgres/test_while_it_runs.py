"""The embedded Postgres in the engine's own Trio program: settings, cancelling, restarts, its log."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import structlog
import trio
import trio_asyncio

from engine.store import postmaster
from engine.store.data_dir_lock import hold_data_dir
from engine.store.embedded_postgres import open_embedded_postgres, serve_embedded_postgres
from engine.store.postgres_account import account_for
from engine.store.postgres_log import shrink_log
from tests.engine.store.embedded_postgres.engine_processes import (
    is_alive,
    kill,
    processes_below,
)

pytestmark = pytest.mark.postgres


@pytest.fixture
def log_output() -> Iterator[list[MutableMapping[str, Any]]]:
    with structlog.testing.capture_logs() as lines:
        yield lines


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="shows what happens to root")


@pytest.mark.trio
async def test_the_settings_in_force_are_the_ones_for_a_durable_queue(data_dir: Path) -> None:
    async with open_embedded_postgres(data_dir) as embedded, trio_asyncio.open_loop():
        connection = await trio_asyncio.aio_as_trio(asyncpg.connect)(embedded.dsn)
        try:
            rows = await trio_asyncio.aio_as_trio(connection.fetch)("SELECT name, setting FROM pg_settings")
            who = await trio_asyncio.aio_as_trio(connection.fetchrow)(
                "SELECT current_user::text, current_database()::text, datcollate::text AS collation_name,"
                " pg_encoding_to_char(encoding)::text AS encoding, inet_server_port() AS tcp_port"
                " FROM pg_database WHERE datname = current_database()"
            )
        finally:
            await trio_asyncio.aio_as_trio(connection.close)()
    settings = {row["name"]: row["setting"] for row in rows}
    wanted = {
        "fsync": "on",
        "synchronous_commit": "on",
        "full_page_writes": "on",
        "data_checksums": "on",
        "listen_addresses": "",
        "unix_socket_permissions": "0700",
        "max_connections": "60",
        "jit": "off",
        "TimeZone": "UTC",
        "wal_compression": "pglz",
        "deadlock_timeout": "1000",
    }
    assert {name: settings[name] for name in wanted} == wanted
    assert tuple(who) == ("durable", "durable", "C", "UTF8", None)


@pytest.mark.trio
async def test_cancelling_stops_postgres_and_frees_the_directory(data_dir: Path) -> None:
    with trio.CancelScope() as scope:
        async with open_embedded_postgres(data_dir, fsync=False) as embedded, trio.open_nursery() as nursery:
            await nursery.start(serve_embedded_postgres, embedded)
            pid = embedded.pid
            scope.cancel()
    assert scope.cancelled_caught
    assert not is_alive(pid)
    with hold_data_dir(data_dir, account_for(data_dir)):
        pass


@pytest.mark.trio
@pytest.mark.parametrize("after_seconds", [0.05, 0.2, 0.4, 0.8])
async def test_cancelling_the_first_start_leaves_no_process(place: Path, after_seconds: float) -> None:
    with trio.move_on_after(after_seconds):
        async with open_embedded_postgres(place / "data", fsync=False):
            await trio.sleep_forever()
    assert processes_below(place) == []
    assert not list(place.glob(".data.unfinished-*"))


@pytest.mark.trio
async def test_postgres_is_out_of_reach_of_the_terminals_interrupt(data_dir: Path) -> None:
    async with open_embedded_postgres(data_dir, fsync=False) as embedded:
        assert os.getsid(embedded.pid) == embedded.pid != os.getsid(0)


@pytest.mark.trio
async def test_a_restart_waits_until_postgres_can_start_again(data_dir: Path, log_output: list[MutableMapping[str, Any]]) -> None:
    async with open_embedded_postgres(data_dir, fsync=False) as embedded, trio.open_nursery() as nursery:
        await nursery.start(serve_embedded_postgres, embedded)
        first = embedded.pid
        # Without its control file Postgres refuses to start; the operator puts it back.
        control = data_dir / "global" / "pg_control"
        control.rename(control.with_suffix(".away"))
        kill(first)
        with trio.fail_after(20):
            while not any(line["event"] == "postgres_does_not_start" for line in log_output):
                await trio.sleep(0.02)
            control.with_suffix(".away").rename(control)
            while embedded.pid == first:
                await trio.sleep(0.02)
        assert is_alive(embedded.pid)
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_an_orphan_is_watched_where_the_kernel_has_no_pidfd(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_pidfd(pid: int) -> int:
        raise OSError(38, "Function not implemented")

    async with open_embedded_postgres(data_dir, fsync=False) as embedded:
        monkeypatch.setattr(os, "pidfd_open", no_pidfd)
        orphan = postmaster.find_postmaster(embedded.plan)
        assert orphan is not None and orphan.pidfd is None
        await postmaster.stop(orphan)
        assert not is_alive(orphan.pid)


@pytest.mark.trio
async def test_a_large_log_is_put_aside_while_postgres_writes_on(data_dir: Path) -> None:
    async with open_embedded_postgres(data_dir, fsync=False) as embedded:
        log = embedded.plan.log
        assert not await shrink_log(embedded.plan), "a small one is left"
        assert await shrink_log(embedded.plan, bytes_max=10)
        assert log.stat().st_size == 0
        assert "ready to accept connections" in log.with_name("postgres.log.1").read_text()
        os.kill(embedded.pid, signal.SIGHUP)
        with trio.fail_after(10):
            while "SIGHUP" not in log.read_text():
                await trio.sleep(0.02)
        assert log.read_bytes()[:1] != b"\0", "it goes on at the new end"
