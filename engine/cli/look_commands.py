"""The commands that look at the engine as a whole: `app list`, `function list`, `engine tasks`, `audit`, `version`."""

from __future__ import annotations

from typing import Any

import click
from rich.text import Text
from rich.tree import Tree

from engine import __version__
from engine.cli import exit_codes
from engine.cli.printing import print_drawing, print_table, printable, short_instant, short_seconds
from engine.cli.session import Session, client_command
from engine.transport.api_client import path_of


@click.group("app")
def app_group() -> None:
    """Look at apps and their environments."""


@app_group.command("list")
@client_command(has_workspace=False)
def list_apps(session: Session) -> None:
    """List the workspaces, and the app that serves each."""
    session.show(
        session.api.get(path_of("apps")),
        lambda answer: print_table(
            ("app", "env", "url", "functions", "deployment", "synced"),
            [
                (
                    app["app"],
                    app["env"],
                    app["serve_url"],
                    app["functions"],
                    (app["deployment"] or "")[:12],
                    short_instant(app["synced_at"]),
                )
                for app in answer["apps"]
            ],
            empty="There are no workspaces yet. Start an app, or make a key with `durable key create --app … --env …`.",
        ),
    )


@click.group("function")
def function_group() -> None:
    """Look at functions."""


@function_group.command("list")
@client_command()
def list_functions(session: Session) -> None:
    """List the functions with their triggers and limits, and why one is held."""
    session.show(
        session.api.get(session.path("functions")),
        lambda answer: print_table(
            ("function", "triggers", "limits", "version", "held"),
            [
                (
                    function["function"],
                    ", ".join(_trigger(each) for each in function["triggers"]),
                    ", ".join(f"{each['limit']} per {each['key'] or 'function'}" for each in function["limits"]),
                    function["config_version"],
                    f"{function['hold']['cause']}: {function['hold']['detail']}" if function["hold"] else "",
                )
                for function in answer["functions"]
            ],
            empty="The workspace has no functions.",
        ),
    )


@click.group("engine")
def engine_group() -> None:
    """Look into a running engine."""


@engine_group.command("tasks")
@client_command(has_workspace=False)
def show_tasks(session: Session) -> None:
    """Show the live tree of the engine's tasks, with their deadlines."""

    def draw(task: Any) -> None:
        tree = Tree(Text(printable(task["name"]), style="bold"))
        _add_tasks(tree, task)
        print_drawing(tree)

    session.show(session.api.get(path_of("engine", "tasks")), draw)


@engine_group.command("show")
@client_command(has_workspace=False)
def show_engine(session: Session) -> None:
    """Show which engine answers, and whether it is ready."""
    session.show(
        session.api.get(path_of("engine")),
        lambda engine: print_table(("", ""), [(name, value) for name, value in engine.items()], empty=""),
    )


@click.command("audit")
@client_command(has_workspace=False)
def audit(session: Session) -> None:
    """Look for what must never be: runs in no state, slots without holders, forgotten timers. Exit code 5 if there is any."""
    answer = session.api.get(path_of("audit"))
    findings = answer.json["findings"]

    def draw(_: Any) -> None:
        if not findings:
            click.echo("0 findings")
            return
        rows = [(each["check"], ", ".join(each["objects"]), each["sentence"]) for each in findings]
        print_table(("check", "of", "what"), rows, empty="")

    session.show(answer, draw)
    if findings:
        raise SystemExit(exit_codes.FINDINGS)


@click.command("version")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="How to print.")
def version(output: str) -> None:
    """Say which version this is."""
    click.echo(f'{{"version":"{__version__}"}}' if output == "json" else __version__)


def _trigger(trigger: Any) -> str:
    return f"{trigger['event']} if {trigger['if']}" if trigger["if"] else str(trigger["event"])


def _add_tasks(tree: Tree, task: Any) -> None:
    for nursery in task["nurseries"]:
        branch = tree
        left = nursery["deadline_in_seconds"]
        if len(task["nurseries"]) > 1 or left is not None:
            word = nursery["name"] if left is None else f"{nursery['name']}, {short_seconds(max(left, 0.0))} left"
            branch = tree.add(Text(word, style="dim"))
        for child in nursery["tasks"]:
            _add_tasks(branch.add(Text(printable(child["name"]))), child)
