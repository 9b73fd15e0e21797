"""Cursors of lists: opaque texts that say where the next page begins, good only for the list, workspace and filters they are
from.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from hashlib import blake2b

import msgspec

_TAG_BYTES = 8


class CursorRefused(Exception):
    """The cursor is not one of this list with these filters. Begin again without a cursor."""

    code = "bad_cursor"


def make_cursor(scope: Sequence[object], position: str) -> str:
    """The cursor behind `position` in the list that `scope` names (its kind, workspace and filters)."""
    return base64.urlsafe_b64encode(_tag(scope) + position.encode()).decode().rstrip("=")


def read_cursor(scope: Sequence[object], cursor: str) -> str:
    """The position of a cursor of exactly this list."""
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        position = raw[_TAG_BYTES:].decode("ascii")
    except (binascii.Error, ValueError):
        raise _refused() from None
    if raw[:_TAG_BYTES] != _tag(scope) or not position:
        raise _refused()
    return position


def _tag(scope: Sequence[object]) -> bytes:
    return blake2b(msgspec.json.encode([str(part) for part in scope]), digest_size=_TAG_BYTES).digest()


def _refused() -> CursorRefused:
    return CursorRefused("The cursor is not from this list with these filters. Ask for the first page without a cursor.")
