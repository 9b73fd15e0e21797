"""`durable run …`: list, show, cancel and start runs."""

from __future__ import annotations

from typing import Any

import click
import msgspec
from msgspec import Raw

from engine.cli import exit_codes
from engine.cli.json_argument import read_json_argument
from engine.cli.printing import print_drawing, print_json, print_table, short_instant
from engine.cli.session import Session, client_command
from engine.cli.trace_view import render_trace
from engine.transport.api_client import as_body

STATUSES = ["queued", "running", "waiting", "completed", "failed", "cancelled"]
PAGE_RUNS = 200


@click.group("run")
def run_group() -> None:
    """Look at runs, start and cancel them."""


@run_group.command("list")
@click.option("--status", type=click.Choice(STATUSES), help="Only runs that stand there.")
@click.option("--function", "function_id", help="Only runs of this function.")
@click.option("--event", help="Only runs that this event started.")
@click.option("-n", "--limit", default=20, show_default=True, type=click.IntRange(1, 10_000), help="How many.")
@client_command()
def list_runs(session: Session, status: str | None, function_id: str | None, event: str | None, limit: int) -> None:
    """List runs, the newest first."""
    runs: list[Any] = []
    cursor: str | None = None
    while True:
        page = session.api.get(
            session.path("runs"),
            {
                "status": status,
                "function": function_id,
                "event": event,
                "cursor": cursor,
                "limit": min(limit - len(runs), PAGE_RUNS),
            },
        ).json
        runs += page["runs"]
        cursor = page["cursor"]
        if cursor is None or len(runs) >= limit:
            break
    if session.output == "json":
        print_json(as_body({"runs": runs, "cursor": cursor}).decode())
        return
    print_table(
        ("run", "function", "status", "event", "created", "ended"),
        [
            (
                run["run_id"],
                run["function"],
                run["status"],
                run["event"],
                short_instant(run["created_at"]),
                short_instant(run["ended_at"]),
            )
            for run in runs
        ],
        empty="No run fits.",
    )


@run_group.command("show")
@click.argument("run_id")
@click.option("--wait", metavar="TIME", help="Wait for its end, at most so long (30s at most).")
@client_command()
def show_run(session: Session, run_id: str, wait: str | None) -> None:
    """Show a run: its steps, where its time went, and why it does not run."""
    answer = session.api.get(session.path("runs", run_id), {"wait": wait})
    session.show(answer, lambda run: print_drawing(render_trace(run)))


@run_group.command("cancel")
@click.argument("run_id")
@client_command()
def cancel_run(session: Session, run_id: str) -> None:
    """End a run now; what it still waits for is given up."""
    answer = session.api.post(session.path("runs", run_id, "cancel"))
    session.show(answer, lambda done: click.echo(f"cancelled {done['run_id']}"))


@run_group.command("start")
@click.argument("function_id", metavar="FUNCTION")
@click.argument("input_json", metavar="[INPUT]", default="null")
@click.option("--id", "sent_id", help="Start it once per id, however often this is repeated within a day.")
@click.option("--wait", metavar="TIME", help="Wait for its end, at most so long (30s at most), and show it.")
@client_command()
def start_run(session: Session, function_id: str, input_json: str, sent_id: str | None, wait: str | None) -> None:
    """Start FUNCTION with INPUT as its event's data (JSON; - reads it from standard input)."""
    fields: dict[str, Any] = {"input": Raw(read_json_argument(input_json, "INPUT"))}
    if sent_id is not None:
        fields["id"] = sent_id
    started = session.api.post(session.path("functions", function_id, "start"), msgspec.json.encode(fields))
    if wait is None:
        again = " (started before)" if started.json["duplicate"] else ""
        session.show(started, lambda run: click.echo(f"{run['run_id']}{again}"))
        return
    shown = session.api.get(session.path("runs", started.json["run_id"]), {"wait": wait})
    session.show(shown, lambda run: print_drawing(render_trace(run)))
    if shown.json["status"] in ("failed", "cancelled"):
        raise SystemExit(exit_codes.FAILED)
