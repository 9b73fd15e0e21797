"""JSON that a person types or pipes in: checked here, so that a slip is found before anything is sent, and sent byte for byte."""

from __future__ import annotations

import sys

import click

from protocol.strict_json import JsonRefused, check


def read_json_argument(text: str, name: str) -> bytes:
    """The bytes of the argument `name`; `-` means standard input."""
    raw = sys.stdin.buffer.read() if text == "-" else text.encode("utf-8", "surrogateescape")
    raw = raw.strip()
    try:
        check(raw)
    except JsonRefused as refused:
        where = f" at {refused.place}" if refused.place else ""
        raise click.UsageError(f"{name} is not JSON that can be sent{where}: {refused.message}") from None
    return raw
