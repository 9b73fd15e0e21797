"""`durable key …`: signing keys for apps and event keys for senders, made, listed and revoked over the API."""

from __future__ import annotations

import sys
from typing import Any

import click

from engine.cli.printing import print_table, short_instant
from engine.cli.session import Session, client_command
from engine.transport.api_client import as_body


@click.group("key")
def key_group() -> None:
    """Make and revoke the keys of a workspace."""


@key_group.command("create")
@click.option("--event", "is_event", is_flag=True, help="A key that may only send events, instead of a signing key.")
@click.option("--label", default="", help="What the event key is for.")
@client_command()
def create_key(session: Session, is_event: bool, label: str) -> None:
    """Make a key; it is shown this once. Two signing keys can be live, so that one can replace the other."""
    if session.app is None or session.env is None:
        # Not guessed: the first key of a workspace makes the workspace.
        raise click.UsageError("Name the workspace with --app and --env.")
    answer = session.api.post(session.path("keys"), as_body({"kind": "event" if is_event else "signing", "label": label}))

    def draw(made: Any) -> None:
        click.echo(made["key"])
        if sys.stderr.isatty():
            use = "authorization: Bearer …" if is_event else f"DURABLE_SIGNING_KEY, with DURABLE_ENV={session.env}"
            click.echo(f"Shown this once. Use it as {use}. Its id is {made['key_id']}.", err=True)

    session.show(answer, draw)


@key_group.command("list")
@client_command()
def list_keys(session: Session) -> None:
    """List the keys of the workspace, without their secrets."""
    session.show(
        session.api.get(session.path("keys")),
        lambda keys: print_table(
            ("key", "kind", "label", "created", "revoked"),
            [
                (key["key_id"], kind, key.get("label", ""), short_instant(key["created_at"]), short_instant(key["revoked_at"]))
                for kind, listed in (("signing", keys["signing_keys"]), ("event", keys["event_keys"]))
                for key in listed
            ],
            empty="The workspace has no keys.",
        ),
    )


@key_group.command("revoke")
@click.argument("key_id")
@client_command()
def revoke_key(session: Session, key_id: str) -> None:
    """End a key; what is signed with it is refused from then on."""
    session.show(session.api.delete(session.path("keys", key_id)), lambda done: click.echo(f"revoked {done['key_id']}"))
