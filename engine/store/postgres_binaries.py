"""Postgres' programs: found in the installed `pgserver` wheel, copied once if the account can not reach them.

The wheel is found without importing it, because its import has effects of its own. A copy goes below
/var/lib/durable, appears at once by a rename, and leaves the virtual environment as it is.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from engine.store.embedded_postgres_error import EmbeddedPostgresError, as_sentence
from engine.store.postgres_account import Account, can_run

MAJOR_VERSION = "16"
"""Of the Postgres in the wheel. Data of another major version is refused."""

VERSION = "16.2"


@dataclass(frozen=True)
class Binaries:
    """A directory with `pgserver/` and `pgserver.libs/`: the programs find their libraries by that shape."""

    root: Path
    notes: tuple[str, ...] = ()

    @property
    def postgres(self) -> Path:
        return self.root / "pgserver" / "pginstall" / "bin" / "postgres"

    @property
    def initdb(self) -> Path:
        return self.postgres.with_name("initdb")

    @property
    def catalog(self) -> Path:
        """A data file that the programs read first: it shows whether they can read the rest."""
        return self.root / "pgserver" / "pginstall" / "share" / "postgresql" / "postgres.bki"


def reachable_binaries(account: Account, machine_dir: Path) -> Binaries:
    """Programs that the account can run: the wheel's own, or a copy of them below `machine_dir`."""
    shipped = _shipped_binaries()
    if _usable(shipped, account):
        return shipped
    if account.name is None:
        # Our own user can read the wheel, so a copy would not run either.
        raise EmbeddedPostgresError(
            "postgres_failed",
            f"The Postgres of the package pgserver does not run here (try: {shipped.postgres} --version). "
            "Set DATABASE_URL to a Postgres of your own.",
        )
    copied = _copy_once(shipped, machine_dir)
    if not _usable(copied, account):
        raise EmbeddedPostgresError(
            "postgres_failed",
            f"The user {account.name!r} can run neither {shipped.postgres} nor the copy {copied.postgres}. "
            f"Try it with: runuser -u {account.name} -- {copied.postgres} --version",
        )
    note = f"Postgres' programs were copied to {copied.root}, because the user {account.name!r} can not run {shipped.postgres}."
    return Binaries(copied.root, (note,))


def _shipped_binaries() -> Binaries:
    found = importlib.util.find_spec("pgserver")
    if found is None or found.origin is None:
        raise EmbeddedPostgresError(
            "no_binaries",
            "The package pgserver, which brings Postgres, is not installed. "
            "Install it with: pip install pgserver. Or set DATABASE_URL to a Postgres of your own.",
        )
    return Binaries(Path(os.path.realpath(found.origin)).parent.parent)


def _usable(binaries: Binaries, account: Account) -> bool:
    return can_run(account, binaries.postgres, binaries.catalog) and can_run(account, binaries.initdb)


def _copy_once(shipped: Binaries, machine_dir: Path) -> Binaries:
    """The copy for exactly these programs; two engines that come at once make one."""
    with as_sentence("copy Postgres' programs", machine_dir):
        named = hashlib.sha256(shipped.postgres.read_bytes()).hexdigest()[:12]
        copy = Binaries(machine_dir / f"postgres-{VERSION}-{named}")
        _make_machine_dir(machine_dir)
        with _one_copier(machine_dir / f"{copy.root.name}.lock"):
            if not copy.root.exists():
                _copy(shipped, copy.root)
    return copy


def _copy(shipped: Binaries, destination: Path) -> None:
    unfinished = destination.with_name(f".{destination.name}.unfinished")
    # Left by a copier that was killed; we hold the lock, so nobody writes there.
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(
        shipped.root / "pgserver" / "pginstall",
        unfinished / "pgserver" / "pginstall",
        symlinks=True,
        ignore=shutil.ignore_patterns("include", "*.a", "pkgconfig", "pgxs"),
    )
    libraries = shipped.root / "pgserver.libs"
    if libraries.is_dir():
        shutil.copytree(libraries, unfinished / "pgserver.libs", symlinks=True)
    # A wheel installed under umask 077 is readable by its owner alone; a copy of it would be too.
    for directory, _, names in os.walk(unfinished):
        Path(directory).chmod(0o755)
        for path in (Path(directory, name) for name in names):
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
    # A crash of the machine must not leave an empty program under the final name.
    os.sync()
    unfinished.rename(destination)


def _make_machine_dir(machine_dir: Path) -> None:
    try:
        machine_dir.mkdir()
    except FileExistsError:
        owner = machine_dir.stat().st_uid
        if owner != os.geteuid():
            raise EmbeddedPostgresError(
                "no_permission",
                f"{machine_dir} belongs to the user id {owner}, so Postgres' programs will not be put there. "
                f"Move it away, or install the engine where every user can read it.",
            ) from None
        return
    # Whatever the umask is; the system user must get through.
    machine_dir.chmod(0o711)


@contextmanager
def _one_copier(path: Path) -> Iterator[None]:
    opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)
