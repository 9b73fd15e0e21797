"""Where the embedded Postgres lives: chooses the data directory and makes the directories above it.

It never changes the mode or owner of a directory that exists. When root's home keeps the system user out, the
default moves to a place of its own below /var/lib/durable, one per home; a directory that was asked for by
name is refused instead, because data must not be somewhere else than the operator said.
"""

from __future__ import annotations

import hashlib
import os
import pwd
from dataclasses import dataclass
from pathlib import Path

from engine.store.embedded_postgres_error import EmbeddedPostgresError, as_sentence
from engine.store.postgres_account import Account, account_for, can_enter

MACHINE_DIR = Path("/var/lib/durable")


@dataclass(frozen=True)
class Home:
    """A data directory that `account` can reach, and sentences for the operator about the choice."""

    data_dir: Path
    account: Account
    notes: tuple[str, ...] = ()


def choose_home(asked: Path | None) -> Home:
    """The home for `--data-dir`, or the default one. Creates the directories above the data, not its own."""
    with as_sentence("look for the data directory", asked or Path("~/.durable")):
        home = _asked_home(asked) if asked is not None else _default_home()
    _make_parents(home)
    return home


def durable_home() -> Path:
    """The operator's own directory: DURABLE_HOME, or ~/.durable."""
    named = os.environ.get("DURABLE_HOME")
    return _real(Path(named)) if named else _login_home(os.environ.get("HOME")) / ".durable"


def _asked_home(asked: Path) -> Home:
    data_dir = _real(asked)
    if not str(data_dir).isprintable():
        # Postgres' own pid file has one line per field.
        raise EmbeddedPostgresError("not_a_data_dir", f"The name {str(data_dir)!r} has a line break or the like. Choose another.")
    account = account_for(data_dir)
    # First of all, because nothing below a barred directory can be asked about.
    barred = _barred_directory(data_dir, account)
    if barred is not None:
        raise _unreachable(data_dir, barred, account)
    return Home(data_dir, account, _user_note(account))


def _default_home() -> Home:
    data_dir = durable_home() / "pgdata"
    account = account_for(data_dir)
    moved_dir = _moved_data_dir(durable_home())
    barred = _barred_directory(data_dir, account)
    if account.name is None or (data_dir / "PG_VERSION").exists():
        # Only root's home moves; and old data is never left behind for an empty directory elsewhere.
        return _asked_home(data_dir)
    # Data that moved once stays there, even if the home was opened since.
    if barred is None and not (moved_dir / "PG_VERSION").exists():
        return Home(data_dir, account, _user_note(account))
    moved = _asked_home(moved_dir)
    why = (
        f"the user {account.name!r} can not enter {barred} (mode {_mode_of(barred)})"
        if barred is not None
        else "an earlier start put it there"
    )
    return Home(moved.data_dir, moved.account, (*moved.notes, f"The data is in {moved.data_dir}, because {why}."))


def _moved_data_dir(home: Path) -> Path:
    """One place per home, so that two homes never meet in one database."""
    if home == _login_home(None) / ".durable":
        return MACHINE_DIR / "pgdata"
    named = hashlib.sha256(os.fsencode(home)).hexdigest()[:12]
    return MACHINE_DIR / f"home-{named}" / "pgdata"


def _login_home(environment_home: str | None) -> Path:
    """The home of the environment, or (unset, or set to nothing) the one of the user's entry."""
    if environment_home:
        return _real(Path(environment_home))
    try:
        return _real(Path(pwd.getpwuid(os.geteuid()).pw_dir))
    except KeyError:
        raise EmbeddedPostgresError(
            "no_home",
            f"HOME is not set and the user id {os.geteuid()} has no entry on this machine. "
            "Set DURABLE_HOME, or name a directory with --data-dir.",
        ) from None


def _real(path: Path) -> Path:
    """Absolute, without links: two names of a directory must meet at one lock, and /proc shows real paths."""
    return Path(os.path.realpath(path))


def _barred_directory(data_dir: Path, account: Account) -> Path | None:
    """The directory on the way to the data that the account can not pass, if any."""
    on_the_way = []
    for parent in reversed(data_dir.parents):
        try:
            if not parent.is_dir():
                break
        except PermissionError:
            break  # the one above bars us, too
        on_the_way.append(parent)
    return can_enter(account, on_the_way)


def _make_parents(home: Home) -> None:
    # Root's directories must let the system user through, but do not show it their names.
    mode = 0o711 if home.account.name is not None else 0o700
    missing = [parent for parent in home.data_dir.parents if not parent.exists()]
    for directory in reversed(missing):
        with as_sentence("create the directory for the data", directory):
            try:
                directory.mkdir()
            except FileExistsError:
                continue  # another engine made it just now
            # Whatever the umask is: mkdir's mode goes through it.
            directory.chmod(mode)


def _user_note(account: Account) -> tuple[str, ...]:
    if account.name is None:
        return ()
    return (f"Postgres runs as the user {account.name!r}, because it refuses to run as root.",)


def _unreachable(data_dir: Path, barred: Path, account: Account) -> EmbeddedPostgresError:
    if account.name is None:
        return EmbeddedPostgresError(
            "data_dir_unreachable",
            f"The data directory {data_dir} can not be reached: you may not enter {barred} "
            f"(mode {_mode_of(barred)}). "
            "Choose a place of your own with --data-dir, or ask the owner of that directory.",
        )
    if data_dir.exists():
        mend = f"Let it pass with: chmod o+x {barred} (or move the data to a directory that it can reach)"
    else:
        mend = f"Choose a directory that it can reach, such as --data-dir {MACHINE_DIR}/{data_dir.name}"
        mend += f", or let it pass with: chmod o+x {barred}"
    return EmbeddedPostgresError(
        "data_dir_unreachable",
        f"The data directory {data_dir} can not be used: Postgres refuses to run as root and so runs as "
        f"the user {account.name!r}, which can not enter {barred} (mode {_mode_of(barred)}). {mend}.",
    )


def _mode_of(path: Path) -> str:
    return f"{path.stat().st_mode & 0o7777:04o}"
