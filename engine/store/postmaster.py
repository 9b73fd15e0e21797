"""The postmaster process: started, adopted, watched and stopped.

A postmaster that a killed engine left behind is adopted if it runs exactly the command that this engine would
start (same program, same settings), which takes no time and needs no crash recovery; any other is stopped
first. It is known by the kernel's word about the process (its program, its directory), never by a process id
in a file alone.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog
import trio

from engine.store.embedded_postgres_error import EmbeddedPostgresError, as_sentence, sentence_for_output
from engine.store.foreign_file import foreign_size_bytes, read_foreign_text
from engine.store.postgres_account import Account, program_environment, read_links

log = structlog.get_logger(__name__)

_POLL_SECONDS = 0.01
_READY_SECONDS_MAX = 600.0
"""Crash recovery replays at most `max_wal_size` (1 GB), on a slow disk for minutes."""

_FAST_SECONDS_MAX = 20.0
_IMMEDIATE_SECONDS_MAX = 5.0
_LEFTOVERS_SECONDS_MAX = 10.0


@dataclass(frozen=True)
class PostmasterPlan:
    """What shall run: the whole command, for which data, as whom, with its words appended to which file."""

    command: tuple[str, ...]
    data_dir: Path
    account: Account
    log: Path


@dataclass(frozen=True)
class Postmaster:
    """A postmaster that runs, or ran. `process` is None for one that is not our child."""

    pid: int
    process: trio.Process | None
    pidfd: int | None = None

    async def wait_ended(self) -> None:
        """Wait until the process is gone; several tasks may wait."""
        if self.process is not None:
            await self.process.wait()
        elif self.pidfd is not None:
            # Of its own: Trio lets only one task wait for a file descriptor.
            waited = os.dup(self.pidfd)
            try:
                await trio.lowlevel.wait_readable(waited)
            finally:
                os.close(waited)
        else:
            # Linux before 5.3.
            await _until(self.is_gone)

    def is_gone(self) -> bool:
        """Whether the process has ended, asked about or not."""
        return not _exists(self.pid) or _is_zombie(self.pid)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal if the process is there; never to a successor of its id (but on Linux before 5.3)."""
        try:
            if self.process is not None:
                self.process.send_signal(number)
            elif self.pidfd is not None:
                signal.pidfd_send_signal(self.pidfd, number)
            else:
                os.kill(self.pid, number)
        except ProcessLookupError:
            pass

    def close(self) -> None:
        if self.pidfd is not None:
            os.close(self.pidfd)


async def start_or_adopt(plan: PostmasterPlan) -> Postmaster:
    """A postmaster of the plan that takes connections. The caller holds the lock of the data directory."""
    orphan = find_postmaster(plan)
    if orphan is not None:
        if await _adopt(orphan, plan):
            return orphan
        await stop(orphan)
        orphan.close()
    _forget_recycled_pid(plan)
    return await _start(plan)


async def stop(postmaster: Postmaster) -> None:
    """Stop it: fast (with a checkpoint), else at once (the next start recovers), else without asking."""
    for number, seconds in (
        (signal.SIGINT, _FAST_SECONDS_MAX),
        (signal.SIGQUIT, _IMMEDIATE_SECONDS_MAX),
        (signal.SIGKILL, _IMMEDIATE_SECONDS_MAX),
    ):
        postmaster.signal(number)
        with trio.move_on_after(seconds):
            await postmaster.wait_ended()
            return
        log.warning("postgres_does_not_end", pid=postmaster.pid, signal=number.name, waited_seconds=seconds)


def find_postmaster(plan: PostmasterPlan) -> Postmaster | None:
    """The postmaster that runs on the data directory now, if any."""
    pid = _recorded_pid(plan)
    if pid is None:
        return None
    try:
        # Before looking at the process, so that what was looked at is what the descriptor names.
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    except OSError:
        pidfd = None
    if _is_postmaster_of(pid, plan):
        return Postmaster(pid, None, pidfd)
    if pidfd is not None:
        os.close(pidfd)
    return None


async def _adopt(orphan: Postmaster, plan: PostmasterPlan) -> bool:
    """Whether the orphan may stay: it runs our command, and it takes connections."""
    if not _runs_command(orphan.pid, plan):
        return False
    with trio.move_on_after(_READY_SECONDS_MAX):
        await _until(lambda: _status(plan, orphan.pid) not in ("starting", "standby") or orphan.is_gone())
    if _status(plan, orphan.pid) == "ready" and not orphan.is_gone():
        log.info("postgres_adopted", pid=orphan.pid, why="an earlier engine left it running")
        return True
    return False


async def _start(plan: PostmasterPlan) -> Postmaster:
    """Start a child. Retried while server processes of a killed postmaster still leave."""
    deadline = trio.current_time() + _LEFTOVERS_SECONDS_MAX
    while True:
        log_offset = foreign_size_bytes(plan.log)
        started = await _spawn(plan)
        try:
            became_ready = await _wait_ready(started, plan)
        except BaseException:
            # Shielded, with the limits of `stop`: a postmaster that nobody knows of would keep the data
            # directory.
            with trio.CancelScope(shield=True):
                await stop(started)
            raise
        if became_ready:
            return started
        said = read_foreign_text(plan.log, from_byte=log_offset) or ""
        if "is still in use" in said and trio.current_time() < deadline:
            await trio.sleep(0.1)
            continue
        raise (sentence_for_output("start Postgres", plan.data_dir, f"{said}\n") if said else _silent_end(started, plan))


async def _spawn(plan: PostmasterPlan) -> Postmaster:
    # The shell opens the log as the account, so root follows no link that the account made; `exec` keeps the
    # process id.
    script = 'umask 077; log=$1; shift; exec "$@" >>"$log" 2>&1'
    with as_sentence("start Postgres", plan.data_dir):
        process = await trio.lowlevel.open_process(
            ["/bin/sh", "-c", script, "sh", str(plan.log), *plan.command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=program_environment(),
            # Ctrl-C reaches every process of the terminal's group and would stop Postgres before the engine
            # has drained.
            start_new_session=True,
            user=plan.account.user,
            group=plan.account.group,
            extra_groups=plan.account.extra_groups,
        )
    return Postmaster(process.pid, process)


async def _wait_ready(started: Postmaster, plan: PostmasterPlan) -> bool:
    """Wait until it takes connections; False if it ended instead."""
    process = started.process
    assert process is not None
    with trio.move_on_after(_READY_SECONDS_MAX) as limit:
        await _until(lambda: process.poll() is not None or _status(plan, started.pid) == "ready")
    if limit.cancelled_caught:
        raise EmbeddedPostgresError(
            "postgres_failed",
            f"Postgres was not ready within {_READY_SECONDS_MAX:.0f} s. Read {plan.log} and start again.",
        )
    return process.poll() is None


async def _until(is_so: Callable[[], bool]) -> None:
    """Postgres tells its status in a file only; its own pg_ctl polls the same line."""
    while not is_so():  # noqa: ASYNC110 (another process decides; no event can tell)
        await trio.sleep(_POLL_SECONDS)


def _forget_recycled_pid(plan: PostmasterPlan) -> None:
    """Remove a stale pid file whose process id belongs to some other living process now.

    Postgres itself ignores the id of a dead process, but refuses to start when any process of the same user
    has it. Only called when `find_postmaster` found none. Server processes left by a killed postmaster are
    still seen by Postgres, which looks at the shared memory too.
    """
    pid = _recorded_pid(plan)
    # What can not be seen is left to Postgres' own judgement.
    if pid is None or not _exists(pid) or _is_postmaster_of(pid, plan) is not False:
        return
    log.warning("stale_pid_file_removed", data_dir=str(plan.data_dir), pid=pid, why="that process is not its Postgres")
    for path in (_pid_file(plan), *plan.data_dir.glob(".s.PGSQL.*.lock")):
        path.unlink(missing_ok=True)


def _pid_file(plan: PostmasterPlan) -> Path:
    return plan.data_dir / "postmaster.pid"


def _pid_lines(plan: PostmasterPlan) -> list[str]:
    """Of postmaster.pid: process id, directory, start, port, socket directory, addresses, memory, status."""
    return (read_foreign_text(_pid_file(plan)) or "").splitlines()


def _recorded_pid(plan: PostmasterPlan) -> int | None:
    first = next(iter(_pid_lines(plan)), "").strip()
    # A negative number is a single-user Postgres, which is not a server.
    return int(first) if first.isascii() and first.isdigit() and int(first) > 1 else None


def _status(plan: PostmasterPlan, pid: int) -> str | None:
    """What the postmaster `pid` says of itself; None before it says anything."""
    lines = _pid_lines(plan)
    return lines[7].strip() if len(lines) > 7 and lines[0].strip() == str(pid) else None


def _is_postmaster_of(pid: int, plan: PostmasterPlan) -> bool | None:
    """Whether `pid` is a `postgres` that lives in the data directory; None if that can not be seen."""
    about = Path("/proc") / str(pid)
    seen = read_links(plan.account, [about / "exe", about / "cwd"])
    if seen is None:
        return False if _is_zombie(pid) else None
    program, directory = seen
    return Path(program.removesuffix(" (deleted)")).name == "postgres" and directory == str(plan.data_dir)


def _runs_command(pid: int, plan: PostmasterPlan) -> bool:
    about = Path("/proc") / str(pid)
    # A program that was replaced by an update shows as "… (deleted)" and does not match.
    if read_links(plan.account, [about / "exe"]) != [os.path.realpath(plan.command[0])]:
        return False
    try:
        said = (about / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    except OSError:
        return False
    return said == [os.fsencode(word) for word in plan.command]


def _is_zombie(pid: int) -> bool:
    """Ended, but its parent has not asked how: usual in containers without an init process."""
    try:
        state = (Path("/proc") / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state == b"Z"


def _exists(pid: int) -> bool:
    """Whether some process, a zombie included, has this id; Postgres asks in the same way."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _silent_end(started: Postmaster, plan: PostmasterPlan) -> EmbeddedPostgresError:
    process = started.process
    code = process.returncode if process is not None else None
    return EmbeddedPostgresError(
        "postgres_failed", f"Postgres ended at once (exit code {code}) without a word. Look at {plan.log}."
    )
