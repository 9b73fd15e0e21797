"""`durable token …`: admin tokens, made and revoked on the database itself, because the first one can not be made over the API.

Whoever can open the database may. With an embedded database that an engine has open, it goes over that engine's socket.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import click
import trio

from engine.cli import exit_codes
from engine.cli.engine_commands import refusal_sentence
from engine.cli.printing import print_json, print_table, short_instant
from engine.cli.session import fail
from engine.store.admin_tokens import create_admin_token, list_admin_tokens, revoke_admin_token
from engine.store.audit_entries import AuditEntry, with_audit_entry
from engine.store.database import Database, open_database
from engine.store.embedded_postgres import open_embedded_postgres
from engine.store.embedded_postgres_error import EmbeddedPostgresError
from engine.store.migrate import migrate
from engine.store.postgres_cluster import DATABASE, ROLE
from engine.store.postgres_home import choose_home
from engine.store.postgres_settings import PORT
from engine.store.socket_dir import socket_dir_for
from engine.transport.api_client import as_body

T = TypeVar("T")
LABEL_CHARACTERS_MAX = 100

_data_dir = click.option("--data-dir", type=click.Path(path_type=Path), help="Where the embedded Postgres keeps its data.")
_output = click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="How to print.")


@click.group("token")
def token_group() -> None:
    """Make and revoke admin tokens, on the database of DATABASE_URL or the embedded one."""


@token_group.command("create")
@click.option("--label", default="admin", show_default=True, help="Who or what it is for.")
@_data_dir
@_output
def create_token(label: str, data_dir: Path | None, output: str) -> None:
    """Make an admin token; it is shown this once."""
    if not 0 < len(label) <= LABEL_CHARACTERS_MAX or not label.isprintable():
        raise click.UsageError(f"--label has 1 to {LABEL_CHARACTERS_MAX} printable characters.")

    async def work(database: Database) -> tuple[str, str]:
        entry = AuditEntry("cli", "token.create", label)
        return await database.transact(with_audit_entry, entry, bool, create_admin_token, label)

    token_id, text = _on_database(data_dir, work)
    if output == "json":
        print_json(as_body({"token_id": token_id, "label": label, "token": text}).decode())
        return
    click.echo(text)
    click.echo("Shown this once. Use it as DURABLE_TOKEN.", err=True)


@token_group.command("list")
@_data_dir
@_output
def list_tokens(data_dir: Path | None, output: str) -> None:
    """List the admin tokens, without their secrets."""

    async def work(database: Database) -> list[Any]:
        return list(await database.read(list_admin_tokens))

    tokens = _on_database(data_dir, work)
    if output == "json":
        rows = [
            {
                "token_id": token.token_id,
                "label": token.label,
                "is_dev": token.is_dev,
                "created_at": token.created_at.isoformat(),
                "revoked_at": token.revoked_at and token.revoked_at.isoformat(),
            }
            for token in tokens
        ]
        print_json(as_body({"tokens": rows}).decode())
        return
    print_table(
        ("token", "label", "dev", "created", "revoked"),
        [
            (
                token.token_id,
                token.label,
                "yes" if token.is_dev else "",
                short_instant(token.created_at.isoformat()),
                short_instant(token.revoked_at.isoformat()) if token.revoked_at else "",
            )
            for token in tokens
        ],
        empty="There are no tokens.",
    )


@token_group.command("revoke")
@click.argument("token_id")
@_data_dir
@_output
def revoke_token(token_id: str, data_dir: Path | None, output: str) -> None:
    """End a token, by its id."""
    try:
        token_sha256 = bytes.fromhex(token_id)
    except ValueError:
        raise click.UsageError("TOKEN_ID is the 64 hexadecimal digits that `durable token list` shows.") from None

    async def work(database: Database) -> bool:
        entry = AuditEntry("cli", "token.revoke", token_id[:64])
        return await database.transact(with_audit_entry, entry, bool, revoke_admin_token, token_sha256)

    if not _on_database(data_dir, work):
        fail("There is no such live token; `durable token list` shows them.", exit_codes.NOT_FOUND)
    if output == "json":
        print_json(as_body({"token_id": token_id, "status": "revoked"}).decode())
    else:
        click.echo(f"revoked {token_id}")


def _on_database(data_dir: Path | None, work: Callable[[Database], Awaitable[T]]) -> T:
    async def run() -> T:
        async with _open(data_dir) as database:
            await database.transact(migrate)
            return await work(database)

    try:
        return trio.run(run)
    except Exception as error:
        sentence = refusal_sentence(error)
        if sentence is None:
            raise
        fail(sentence, exit_codes.FAILED)


@asynccontextmanager
async def _open(data_dir: Path | None) -> AsyncIterator[Database]:
    async with AsyncExitStack() as opened:
        dsn = os.environ.get("DATABASE_URL") or await _embedded_dsn(data_dir, opened)
        yield await opened.enter_async_context(open_database(dsn, connections_max=2))


async def _embedded_dsn(data_dir: Path | None, opened: AsyncExitStack) -> str:
    """The address of the embedded Postgres: of the one that an engine runs now, or of one that runs while `opened` is open."""
    home = await trio.to_thread.run_sync(choose_home, data_dir)
    try:
        return (await opened.enter_async_context(open_embedded_postgres(data_dir))).dsn
    except EmbeddedPostgresError as error:
        if error.code != "data_dir_in_use":
            raise
    socket = quote(str(socket_dir_for(home.data_dir, home.account)), safe="")
    return f"postgresql://{ROLE}@/{DATABASE}?host={socket}&port={PORT}"
