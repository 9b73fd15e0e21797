"""The files of the database cluster: made once, by initdb, and recognized later.

A cluster is made beside its final place and renamed when it is whole, so a crash in between leaves a
directory to throw away and never half a cluster. An existing directory is used as it is, or refused; its mode
and owner are never changed.
"""

from __future__ import annotations

import functools
import os
import secrets
import shutil
from pathlib import Path

import trio

from engine.store.embedded_postgres_error import EmbeddedPostgresError, as_sentence, sentence_for_output
from engine.store.foreign_file import read_foreign_text
from engine.store.postgres_account import Account, program_environment
from engine.store.postgres_binaries import MAJOR_VERSION, VERSION, Binaries
from engine.store.postgres_home import Home

DATABASE = "durable"
ROLE = "durable"


async def ensure_cluster(home: Home, binaries: Binaries, *, fsync: bool) -> None:
    """Make the cluster unless it is there. The caller holds the lock of the data directory."""
    with as_sentence("clean up an unfinished data directory", home.data_dir.parent):
        await trio.to_thread.run_sync(_remove_unfinished, home.data_dir)
    if _is_cluster(home):
        return
    with as_sentence("make the data directory", home.data_dir):
        await _make_cluster(home, binaries, fsync=fsync)


def _is_cluster(home: Home) -> bool:
    """Whether the directory holds a cluster that we can run; False if there is none yet."""
    data_dir = home.data_dir
    with as_sentence("read the data directory", data_dir):
        if not data_dir.exists():
            return False
        if not data_dir.is_dir():
            raise EmbeddedPostgresError("not_a_data_dir", f"{data_dir} is a file. Name a directory with --data-dir.")
        owner = data_dir.stat().st_uid
        may_look = owner == home.account.uid or os.geteuid() == 0
        is_empty = may_look and not any(data_dir.iterdir())
    if is_empty:
        return _may_replace_empty(home)
    if owner != home.account.uid:
        raise EmbeddedPostgresError(
            "no_permission",
            f"The data directory {data_dir} belongs to the user id {owner}. "
            "Run the engine as that user, or name another directory with --data-dir.",
        )
    version = read_foreign_text(data_dir / "PG_VERSION")
    if version is None:
        raise EmbeddedPostgresError(
            "not_a_data_dir",
            f"{data_dir} exists and holds something else than a Postgres cluster, so it is left alone. "
            f"Name a directory that does not exist yet, such as --data-dir {data_dir / 'pgdata'}",
        )
    if version.strip() != MAJOR_VERSION:
        raise EmbeddedPostgresError(
            "other_postgres_version",
            f"The data in {data_dir} is of Postgres {version.strip()}; this engine has Postgres {VERSION}. "
            f"Move it with that version's pg_dump, or run that version yourself and set "
            "DATABASE_URL, or name another directory with --data-dir.",
        )
    return True


def _may_replace_empty(home: Home) -> bool:
    """An empty directory is replaced by the new cluster only if nobody could tell: same owner, same mode."""
    found = home.data_dir.stat()
    if found.st_uid != home.account.uid or found.st_mode & 0o7777 != 0o700 or os.path.ismount(home.data_dir):
        raise EmbeddedPostgresError(
            "not_a_data_dir",
            f"{home.data_dir} exists already. The engine makes its data directory itself and does not "
            f"change the owner or mode of yours. "
            f"Name one that does not exist yet, such as --data-dir {home.data_dir / 'pgdata'}",
        )
    return False


async def _make_cluster(home: Home, binaries: Binaries, *, fsync: bool) -> None:
    unfinished = home.data_dir.with_name(f"{_unfinished_prefix(home.data_dir)}{secrets.token_hex(4)}")
    unfinished.mkdir(mode=0o700)
    try:
        if home.account.user is not None:
            os.chown(unfinished, home.account.uid, home.account.gid, follow_symlinks=False)
        await _initdb(unfinished, home.account, binaries, fsync=fsync)
        await _create_database(unfinished, home.account, binaries)
        unfinished.rename(home.data_dir)
        await trio.to_thread.run_sync(_sync_directory, home.data_dir.parent)
    except BaseException:
        # Shielded and short: 40 MB that nobody would look for. A next start would remove it as well.
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(functools.partial(shutil.rmtree, unfinished, ignore_errors=True))
        raise


async def _initdb(unfinished: Path, account: Account, binaries: Binaries, *, fsync: bool) -> None:
    command = [
        str(binaries.initdb),
        f"--pgdata={unfinished}",
        f"--username={ROLE}",
        # The socket's directory is private to the account, so who gets there may come in; nothing else is
        # served.
        "--auth-local=trust",
        "--auth-host=reject",
        "--encoding=UTF8",
        # Text sorts by bytes: no update of a C library or ICU can change the order and so break an index. It
        # is also fastest.
        "--locale=C",
        # A bad disk is found when a page is read, not when a run went wrong.
        "--data-checksums",
        "--no-instructions",
    ]
    await _run_program(command if fsync else [*command, "--no-sync"], b"", account, unfinished)


async def _create_database(unfinished: Path, account: Account, binaries: Binaries) -> None:
    """Before the rename and without a server, so that every cluster in place has its database."""
    command = [str(binaries.postgres), "--single", "-D", str(unfinished), "template1"]
    await _run_program(command, f"CREATE DATABASE {DATABASE}\n".encode(), account, unfinished)


async def _run_program(command: list[str], said: bytes, account: Account, place: Path) -> None:
    ended = await trio.run_process(
        command,
        stdin=said,
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        cwd="/",
        env=program_environment(),
        # A Ctrl-C in the terminal is for the engine, which stops its programs itself.
        start_new_session=True,
        user=account.user,
        group=account.group,
        extra_groups=account.extra_groups,
    )
    output = (ended.stdout + ended.stderr).decode("utf-8", "replace")
    # Single-user Postgres ends with 0 after a failed statement.
    if ended.returncode != 0 or "ERROR:" in output or "FATAL:" in output:
        raise sentence_for_output("make the data directory", place.parent, output)


def _remove_unfinished(data_dir: Path) -> None:
    """Throw away what a killed engine left. An initdb that still runs there fails and changes nothing."""
    if not data_dir.parent.is_dir():
        return
    for path in data_dir.parent.iterdir():
        if path.name.startswith(_unfinished_prefix(data_dir)):
            shutil.rmtree(path, ignore_errors=True)


def _unfinished_prefix(data_dir: Path) -> str:
    return f".{data_dir.name}.unfinished-"


def _sync_directory(directory: Path) -> None:
    opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
