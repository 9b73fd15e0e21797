"""How commands print: tables for a person at a terminal, tab-separated lines for a pipe, or the API's JSON as it came.

Names and messages come from users and apps, so nothing is printed that a terminal would take for a command.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

import click
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

# C0 and C1 controls, and the marks that turn the direction of text around.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_UNPRINTABLE_IN_JSON = re.compile(r"[\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
PIPE_WIDTH: Final = 120


def printable(value: Any) -> str:
    """A value as text on one line, without anything that a terminal acts on."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else str(value)
    return _UNPRINTABLE.sub("�", text.replace("\n", " ").replace("\t", " "))


def print_json(text: str) -> None:
    """The API's answer: the same JSON, with characters escaped that a terminal acts on."""
    click.echo(_UNPRINTABLE_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, empty: str) -> None:
    """Rows under their columns; `empty` is said when there are none, to the person and not to the pipe."""
    texts = [[printable(value) for value in row] for row in rows]
    if not sys.stdout.isatty():
        for line in (columns, *texts):
            click.echo("\t".join(line))
        return
    if not texts:
        click.echo(empty)
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        # The first column names the row: it is what people copy.
        table.add_column(column, overflow="fold", no_wrap=column == columns[0])
    for row in texts:
        table.add_row(*(Text(value, style=status_style(value)) for value in row))
    print_drawing(table)


def print_drawing(drawing: RenderableType) -> None:
    """A drawing, in colour at a terminal and as plain text elsewhere."""
    is_terminal = sys.stdout.isatty()
    Console(highlight=False, markup=False, emoji=False, width=None if is_terminal else PIPE_WIDTH).print(drawing)


def status_style(word: str) -> str:
    """The colour of a status word; none for anything else."""
    return {
        "completed": "green",
        "failed": "red",
        "cancelled": "yellow",
        "running": "cyan",
        "waiting": "blue",
        "retrying": "yellow",
        "queued": "magenta",
    }.get(word, "")


def short_instant(text: str | None) -> str:
    """An instant of the API in the local time of the person, to the second."""
    instant = parse_instant(text)
    return "" if instant is None else instant.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def parse_instant(text: str | None) -> datetime | None:
    """An instant of the API."""
    return None if text is None else datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(UTC)


def short_seconds(seconds: float) -> str:
    """A length of time in the unit that fits: 0.4 ms, 12 ms, 3.21 s, 4m 5s, 2h 3m, 5d 1h."""
    if seconds < 0.001:
        return "0" if seconds <= 0 else f"{seconds * 1000:.1f} ms"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m {rest}s"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours}h {minutes}m"
    return f"{hours // 24}d {hours % 24}h"
