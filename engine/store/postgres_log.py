"""Postgres' own log, `postgres.log` in the data directory, kept from growing without end.

The file is copied to `postgres.log.1` and emptied in place, because Postgres holds it open (for appending, so
it goes on at the new end). A few lines written in between may be lost. The account does the work: root writes
nothing in its directory.
"""

from __future__ import annotations

import trio

from engine.store.foreign_file import foreign_size_bytes
from engine.store.postgres_account import program_environment
from engine.store.postmaster import PostmasterPlan

_LOG_BYTES_MAX = 16 * 1024 * 1024


async def shrink_log(plan: PostmasterPlan, *, bytes_max: int = _LOG_BYTES_MAX) -> bool:
    """Put the log aside if it is too large; says whether it was. A full disk does not stop the engine."""
    if foreign_size_bytes(plan.log) <= bytes_max:
        return False
    done = await trio.run_process(
        ["/bin/sh", "-c", 'umask 077; cp "$1" "$1.1" && : >"$1"', "sh", str(plan.log)],
        check=False,
        capture_stdout=True,
        capture_stderr=True,
        cwd="/",
        env=program_environment(),
        user=plan.account.user,
        group=plan.account.group,
        extra_groups=plan.account.extra_groups,
    )
    return done.returncode == 0
