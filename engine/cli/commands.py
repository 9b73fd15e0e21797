"""The client commands of `durable`, put into its group. What each does is in the file of its noun; exit codes are in exit_codes."""

from __future__ import annotations

import click

from engine.cli.event_commands import event_group
from engine.cli.key_commands import key_group
from engine.cli.look_commands import app_group, audit, engine_group, function_group, version
from engine.cli.run_commands import run_group
from engine.cli.token_commands import token_group


def add_client_commands(group: click.Group) -> None:
    """Add them all."""
    for command in (
        event_group,
        run_group,
        app_group,
        function_group,
        engine_group,
        audit,
        key_group,
        token_group,
        version,
    ):
        group.add_command(command)
