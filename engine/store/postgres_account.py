"""The account that the embedded Postgres runs as.

Postgres refuses to run as root. An ordinary user runs it as itself; root runs it as the owner of existing
data, or else as the system user `durable`, which is created when it is missing. Nothing here touches a file.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from engine.store.embedded_postgres_error import EmbeddedPostgresError

SYSTEM_USER = "durable"
CREATE_USER = ("useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", SYSTEM_USER)


@dataclass(frozen=True)
class Account:
    """Whom Postgres runs as; `name` is None when that is the engine's own user."""

    uid: int
    gid: int
    name: str | None
    groups: tuple[int, ...] = ()

    @property
    def user(self) -> int | None:
        """For `subprocess`: the user to switch to, None for no switch."""
        return None if self.name is None else self.uid

    @property
    def group(self) -> int | None:
        return None if self.name is None else self.gid

    @property
    def extra_groups(self) -> list[int] | None:
        return None if self.name is None else list(self.groups)


def account_for(data_dir: Path) -> Account:
    """The account for a data directory, which may not exist yet. Root may create the system user."""
    if os.geteuid() != 0:
        return Account(os.geteuid(), os.getegid(), None)
    if data_dir.is_dir() and (data_dir / "PG_VERSION").exists():
        # Old data decides. Running as another user would need a chown of what may not be ours.
        return _owner_of(data_dir)
    return _system_account()


def program_environment() -> dict[str, str]:
    """The environment of Postgres' programs. None of ours: no PGOPTIONS or LD_LIBRARY_PATH changes them."""
    return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "TZ": "UTC"}


def can_enter(account: Account, directories: list[Path]) -> Path | None:
    """The first directory that the account can not pass through, or None.

    Asked of the kernel by a process of that account: modes, groups, access lists and containers all count.
    """
    script = 'for d do [ -x "$d" ] || { printf %s "$d"; exit 3; }; done'
    tried = _run_as(account, ["/bin/sh", "-c", script, "sh", *map(str, directories)])
    match tried.returncode:
        case 0:
            return None
        case 3:
            return Path(os.fsdecode(tried.stdout))
        case _:
            raise EmbeddedPostgresError(
                "no_system_user",
                f"Could not run a program as the user {account.name!r}: {os.fsdecode(tried.stderr).strip()}",
            )


def read_links(account: Account, links: list[Path]) -> list[str] | None:
    """Where the links point, or None if one is missing or barred.

    Read as the account: /proc shows a process's program to its own user, but to root only with a capability
    that containers take away.
    """
    tried = _run_as(account, ["/bin/sh", "-c", 'for l do readlink "$l" || exit 3; done', "sh", *map(str, links)])
    return os.fsdecode(tried.stdout).splitlines() if tried.returncode == 0 else None


def can_run(account: Account, program: Path, *readable: Path) -> bool:
    """Whether the account can start `program` and read the files beside it."""
    script = 'p=$1; shift; for f do [ -r "$f" ] || exit 3; done; exec "$p" --version'
    tried = _run_as(account, ["/bin/sh", "-c", script, "sh", str(program), *map(str, readable)])
    return tried.returncode == 0


def _run_as(account: Account, command: list[str]) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            cwd="/",
            env=program_environment(),
            user=account.user,
            group=account.group,
            extra_groups=account.extra_groups,
        )
    except OSError as error:
        raise EmbeddedPostgresError(
            "no_system_user",
            f"Root may not start a program as the user {account.name!r} here ({error.strerror}). "
            "Run the engine as an ordinary user, or set DATABASE_URL to a Postgres of your own.",
        ) from error


def _owner_of(data_dir: Path) -> Account:
    uid = data_dir.stat().st_uid
    if uid == 0:
        raise EmbeddedPostgresError(
            "owned_by_root",
            f"The data directory {data_dir} belongs to root, and Postgres refuses to run as root. "
            f"Give it to the user that shall run it, for example with: chown -R {SYSTEM_USER}: {data_dir}",
        )
    try:
        return _account_of(pwd.getpwuid(uid))
    except KeyError:
        raise EmbeddedPostgresError(
            "no_system_user",
            f"The data directory {data_dir} belongs to the user id {uid}, which has no name on this machine. "
            f"Give it to an existing user, for example with: chown -R {SYSTEM_USER}: {data_dir}",
        ) from None


def _system_account() -> Account:
    """The system user `durable`, created if need be."""
    try:
        return _account_of(pwd.getpwnam(SYSTEM_USER))
    except KeyError:
        _create_system_user()
    try:
        return _account_of(pwd.getpwnam(SYSTEM_USER))
    except KeyError:
        raise _no_system_user("useradd ran, but the user is not there") from None


def _create_system_user() -> None:
    # PATH of a root without a login shell often lacks the sbin directories.
    useradd = shutil.which("useradd", path=program_environment()["PATH"])
    if useradd is None:
        raise _no_system_user("useradd is missing on this machine")
    made = subprocess.run([useradd, *CREATE_USER[1:]], stdin=subprocess.DEVNULL, capture_output=True, env=program_environment())
    # 9: the name exists, so another engine was quicker.
    if made.returncode not in (0, 9):
        raise _no_system_user(os.fsdecode(made.stderr).strip() or f"useradd ended with {made.returncode}")


def _no_system_user(why: str) -> EmbeddedPostgresError:
    return EmbeddedPostgresError(
        "no_system_user",
        f"Postgres refuses to run as root, and the system user {SYSTEM_USER!r} can not be created ({why}). "
        f"Create it with: {' '.join(CREATE_USER)} (on Alpine: adduser -S -D -H {SYSTEM_USER}). "
        "Or run the engine as an ordinary user, or set DATABASE_URL to a Postgres of your own.",
    )


def _account_of(entry: pwd.struct_passwd) -> Account:
    if entry.pw_uid == 0:
        raise EmbeddedPostgresError("no_system_user", f"The user {entry.pw_name!r} is root, which Postgres refuses.")
    groups = tuple(os.getgrouplist(entry.pw_name, entry.pw_gid))
    return Account(entry.pw_uid, entry.pw_gid, entry.pw_name, groups)
