"""`durable event …`: send events, list them, and see what became of one."""

from __future__ import annotations

from typing import Any

import click
import msgspec
from msgspec import Raw

from engine.cli.json_argument import read_json_argument
from engine.cli.printing import print_table, printable, short_instant
from engine.cli.session import Session, client_command


@click.group("event")
def event_group() -> None:
    """Send events, and see what became of them."""


@event_group.command("send")
@click.argument("name")
@click.argument("data_json", metavar="[JSON]", default="null")
@click.option("--id", "sent_id", help="Deduplicates: the same id again within a day changes nothing.")
@client_command()
def send_event(session: Session, name: str, data_json: str, sent_id: str | None) -> None:
    """Send the event NAME with JSON as its data (- reads it from standard input)."""
    event: dict[str, Any] = {"name": name, "data": Raw(read_json_argument(data_json, "JSON"))}
    if sent_id is not None:
        event["id"] = sent_id
    answer = session.api.post(session.path("events"), msgspec.json.encode({"events": [event]}))

    def draw(sent: Any) -> None:
        [entry] = sent["events"]
        note = (
            " (sent before, with another content)"
            if entry.get("conflict")
            else " (sent before)"
            if entry.get("duplicate")
            else ""
        )
        click.echo(f"event {printable(entry['id'])}{note}")
        for run in entry["runs"]:
            click.echo(f"run   {run['run_id']}  {printable(run['function'])}")

    session.show(answer, draw)


@event_group.command("list")
@click.option("--name", help="Only events of this name.")
@click.option("-n", "--limit", default=20, show_default=True, type=click.IntRange(1, 200), help="How many.")
@client_command()
def list_events(session: Session, name: str | None, limit: int) -> None:
    """List events, the newest first."""
    answer = session.api.get(session.path("events"), {"name": name, "limit": limit})
    session.show(
        answer,
        lambda page: print_table(
            ("event", "name", "received", "bytes", "runs", "skipped"),
            [
                (
                    event["id"],
                    event["name"],
                    short_instant(event["received_at"]),
                    event["data_bytes"],
                    event["runs"],
                    event["skipped"],
                )
                for event in page["events"]
            ],
            empty="There are no events.",
        ),
    )


@event_group.command("show")
@click.argument("event_id", metavar="EVENT")
@client_command()
def show_event(session: Session, event_id: str) -> None:
    """Show what each function did with EVENT, and why."""
    answer = session.api.get(session.path("events", event_id))

    def draw(event: Any) -> None:
        click.echo(f"{printable(event['name'])}  {printable(event['id'])}  {short_instant(event['received_at'])}")
        print_table(
            ("function", "decision", "run or reason"),
            [(each["function"], each["decision"], each["run_id"] or each["reason"]) for each in event["decisions"]],
            empty="No function has a trigger for it.",
        )

    session.show(answer, draw)
