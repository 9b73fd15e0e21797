"""Secrets at rest: sealed, hashed, in private files, and refused when anybody else could have them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import trio

from engine.cli.dev_files import read_dev_token, read_or_create_dev_key, read_or_create_dev_token
from engine.store.admin_tokens import create_admin_token
from engine.store.database import Database, DatabaseUnavailable
from engine.store.event_keys import create_event_key
from engine.store.keyring import Keyring
from engine.store.private_file import PrivateFileRefused, read_or_create_private_file
from engine.store.sealing import SealBroken, Sealer, SecretKeyRefused, open_sealer
from engine.store.signing_keys import TooManyKeys, create_signing_key, read_live_keys, revoke_signing_key
from engine.store.sql import Connection
from engine.store.workspaces import find_or_create_workspace

SECRET = "a secret key for tests, long enough"


def test_what_is_sealed_opens_with_the_same_key_and_row_only() -> None:
    sealer = Sealer(SECRET)
    sealed = sealer.seal(b"secret", b"row-1")
    assert Sealer(SECRET).open(sealed, b"row-1") == b"secret" and b"secret" not in sealed
    assert sealer.seal(b"secret", b"row-1") != sealed
    for other, text, row in (
        (Sealer("x" * 40), sealed, b"row-1"),
        (sealer, sealed, b"row-2"),
        (sealer, sealed[:-1], b"row-1"),
        (sealer, b"\x02" + sealed[1:], b"row-1"),
        (sealer, b"", b"row-1"),
    ):
        with pytest.raises(SealBroken):
            other.open(text, row)


def test_the_secret_key_comes_from_one_place_and_must_be_there(tmp_path: Path) -> None:
    file = tmp_path / "mounted"
    file.write_text(SECRET + "\n")
    sealed = open_sealer({"DURABLE_SECRET_KEY": SECRET}, home=None).seal(b"s", b"r")
    assert open_sealer({"DURABLE_SECRET_KEY_FILE": str(file)}, home=None).open(sealed, b"r") == b"s"
    for environment in (
        {},
        {"DURABLE_SECRET_KEY": "short"},
        {"DURABLE_SECRET_KEY_FILE": str(tmp_path / "absent")},
        {"DURABLE_SECRET_KEY": SECRET, "DURABLE_SECRET_KEY_FILE": str(file)},
    ):
        with pytest.raises(SecretKeyRefused):
            open_sealer(environment, home=None)


def test_an_embedded_database_gets_a_secret_file_that_is_kept(tmp_path: Path) -> None:
    home = tmp_path / "home"
    sealed = open_sealer({}, home=home).seal(b"s", b"r")
    assert open_sealer({}, home=home).open(sealed, b"r") == b"s"
    assert (home / "secret.key").stat().st_mode & 0o777 == 0o600
    # As root another user, Postgres, may have to pass through; nobody may look.
    assert home.stat().st_mode & 0o777 == (0o711 if os.geteuid() == 0 else 0o700)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o666])
def test_a_secret_file_that_others_can_use_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "dev.key"
    read_or_create_private_file(path, lambda: "secret")
    path.chmod(mode)
    with pytest.raises(PrivateFileRefused, match="can be used by others"):
        read_or_create_private_file(path, lambda: "other")


def test_a_link_a_directory_or_an_empty_file_is_no_secret(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("theirs")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    (tmp_path / "directory").mkdir()
    (tmp_path / "empty").touch(0o600)
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name in ("link", "directory", "empty", "pipe"):
        with pytest.raises(PrivateFileRefused):
            read_or_create_private_file(tmp_path / name, lambda: "secret")


def test_a_directory_where_others_may_write_is_refused(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(PrivateFileRefused, match="Others may write"):
        read_or_create_private_file(shared / "dev.key", lambda: "secret")


async def test_many_who_come_at_once_get_the_same_secret(tmp_path: Path) -> None:
    found: set[str] = set()
    texts = iter([f"secret-{n}" for n in range(20)])

    async def read() -> None:
        found.add(await trio.to_thread.run_sync(read_or_create_private_file, tmp_path / "home" / "key", lambda: next(texts)))

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(read)
    assert len(found) == 1
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["key"]


def test_the_dev_files_are_made_once_and_checked(tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert read_dev_token(home) is None
    key, token = read_or_create_dev_key(home), read_or_create_dev_token(home)
    assert (read_or_create_dev_key(home), read_or_create_dev_token(home), read_dev_token(home)) == (key, token, token)
    for name, read in (("dev.key", read_or_create_dev_key), ("dev.token", read_or_create_dev_token)):
        (home / name).write_text("rubbish\n")
        with pytest.raises(PrivateFileRefused, match="Remove it"):
            read(home)


async def test_no_secret_is_in_the_database_in_the_clear(database: Database) -> None:
    workspace_id = await database.transact(find_or_create_workspace, "shop", "acc")
    _, signing_key = await database.transact(create_signing_key, Sealer(SECRET), workspace_id)
    _, event_key = await database.transact(create_event_key, workspace_id, "website")
    _, token = await database.transact(create_admin_token, "ops")

    async def dump(conn: Connection) -> str:
        tables = ("signing_key", "event_key", "admin_token")
        rows = [str(dict(row)) for table in tables for row in await conn._raw.fetch(f"SELECT * FROM {table}")]
        return "\n".join(rows)

    dumped = await database.read(dump)
    for secret in (signing_key.removeprefix("whsec_"), event_key, token):
        assert secret not in dumped
    assert len(token) > 40 and len(event_key) > 40


async def test_a_workspace_has_two_live_signing_keys_at_most_also_when_made_at_once(database: Database) -> None:
    workspace_id = await database.transact(find_or_create_workspace, "shop", "acc")
    refused: list[TooManyKeys] = []

    async def make() -> None:
        try:
            await database.transact(create_signing_key, Sealer(SECRET), workspace_id)
        except TooManyKeys as error:
            refused.append(error)

    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(make)
    found = await database.read(read_live_keys, Sealer(SECRET), "shop", "acc")
    assert found is not None and len(found[1]) == 2 and len(refused) == 4


async def test_keys_that_were_sealed_with_another_secret_key_are_said_to_be(database: Database) -> None:
    workspace_id = await database.transact(find_or_create_workspace, "shop", "acc")
    await database.transact(create_signing_key, Sealer(SECRET), workspace_id)
    with pytest.raises(SealBroken, match="DURABLE_SECRET_KEY"):
        await database.read(read_live_keys, Sealer("x" * 40), "shop", "acc")


async def test_the_keyring_finds_a_new_key_at_once_and_loses_a_revoked_one(database: Database) -> None:
    sealer = Sealer(SECRET)
    here, elsewhere = Keyring(database, sealer, None), Keyring(database, sealer, None)
    workspace_id = await database.transact(find_or_create_workspace, "shop", "acc")
    assert (await here.live_keys("shop", "acc")).keys == ()
    key_id, text = await database.transact(create_signing_key, sealer, workspace_id)
    assert (await here.live_keys("shop", "acc")).keys == ()
    await trio.sleep(0.55)  # one look at most in half a second, whatever strangers send
    assert [key.text() for key in (await here.live_keys("shop", "acc", newer=True)).keys] == [text]
    assert [key.text() for key in (await elsewhere.live_keys("shop", "acc")).keys] == [text]
    await database.transact(revoke_signing_key, workspace_id, key_id)
    here.forget("shop", "acc")
    assert (await here.live_keys("shop", "acc")).keys == ()
    assert not await database.transact(revoke_signing_key, workspace_id, key_id)


async def test_keys_are_read_once_for_all_who_ask_at_once(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    ring = Keyring(database, Sealer(SECRET), None)
    reads: list[object] = []
    read = database.read

    async def counted(*args: Any, **rest: Any) -> Any:
        reads.append(args)
        return await read(*args, **rest)

    monkeypatch.setattr(database, "read", counted)
    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(ring.live_keys, "shop", "acc")
    assert len(reads) == 1


async def test_a_failed_look_for_keys_is_made_again_by_the_next(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    ring = Keyring(database, Sealer(SECRET), None)

    async def fail(*args: Any, **rest: Any) -> Any:
        raise DatabaseUnavailable("gone")

    with monkeypatch.context() as patched:
        patched.setattr(database, "read", fail)
        with pytest.raises(DatabaseUnavailable):
            await ring.live_keys("shop", "acc")
    assert (await ring.live_keys("shop", "acc")).keys == ()


async def test_two_makers_of_one_workspace_get_one_id(database: Database) -> None:
    ids: set[int] = set()

    async def make() -> None:
        ids.add(await database.transact(find_or_create_workspace, "new", "dev"))

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(make)
    assert len(ids) == 1
