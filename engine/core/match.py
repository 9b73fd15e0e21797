"""Equality matches as an index sees them: which paths of `event.data` a wait compares (its shape), and a hash of their values.

Two values match when JSON calls them equal: `7` and `7.0` are one number, `1` and `true` are not the same. The hash is 16 bytes of
BLAKE2b, wide enough that equal hashes are taken for equal values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any

import msgspec

ABSENT = object()


def shape_of(match: Mapping[str, Any] | None) -> list[str]:
    """The paths that a match compares, in their one order."""
    return sorted(match or {})


def hash_of_match(match: Mapping[str, Any] | None) -> bytes:
    """The hash of a match's own values, in the order of its shape."""
    return _hash([(match or {})[path] for path in shape_of(match)])


def hash_of_event(data: Any, paths: Iterable[str]) -> bytes:
    """The hash of an event's values at these paths; an absent one is null, as everywhere."""
    return _hash([value_at(data, path) for path in paths])


def value_at(data: Any, path: str) -> Any:
    """The value at a dotted path. A key that itself has dots is found when it stands there whole."""
    if isinstance(data, dict) and path in data:
        return data[path]
    head, dot, rest = path.partition(".")
    if dot and isinstance(data, dict) and head in data:
        return value_at(data[head], rest)
    return None


def _hash(values: list[Any]) -> bytes:
    canonical = msgspec.json.encode([_canonical(value) for value in values])
    return blake2b(canonical, digest_size=16).digest()


def _canonical(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict | list):
        # Matches compare scalars; a structure in the event only has to differ from all of them.
        return {"structure": True}
    return value
