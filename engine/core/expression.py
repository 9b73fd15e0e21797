"""Expressions over an event (CEL): conditions and keys. The only importer of the CEL library.

An absent field is null: a condition is then false and a key is the null key; no expression ever raises at an event. A plain path, the
usual key, is looked up without the library.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import cel
import msgspec

EXPRESSION_CHARACTERS_MAX = 1_000
KEY_CHARACTERS_MAX = 512
_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
_LITERALS = frozenset({"true", "false", "null"})


class ExpressionRefused(ValueError):
    """The expression can not be used; the text says where and why. Mend it in the function's definition and sync again."""

    code = "invalid_expression"


def check_expression(source: str) -> None:
    """Refuse an expression that does not compile or is too long."""
    if len(source) > EXPRESSION_CHARACTERS_MAX:
        raise ExpressionRefused(f"it has {len(source):,} characters; the limit is {EXPRESSION_CHARACTERS_MAX:,}")
    if not _is_path(source):
        _compiled(source)


def is_true(source: str, event: Mapping[str, Any]) -> bool:
    """Whether the condition holds for `event` (a mapping with id, name, data); anything but true is false."""
    return _value(source, event) is True


def key_text(source: str | None, event: Mapping[str, Any]) -> str:
    """The key of `event` as JSON text, so that the number 1 and the text "1" are two keys. No source: one key for all."""
    if source is None:
        return "null"
    value = _value(source, event)
    try:
        return msgspec.json.encode(value, enc_hook=str, order="deterministic").decode()
    except (TypeError, ValueError):
        # A map with keys that are no texts: JSON has none, and its own words are a key as good as any.
        return msgspec.json.encode(repr(value)).decode()


def _value(source: str, event: Mapping[str, Any]) -> Any:
    data = event.get("data")
    if _is_path(source):
        head, _, rest = source.partition(".")
        value: Any = event if head == "event" else data.get(head) if isinstance(data, dict) else None
        for field in rest.split(".") if rest else ():
            value = value.get(field) if isinstance(value, dict) else None
        return value
    try:
        program = _compiled(source)
        variables = {name: data.get(name) if isinstance(data, dict) else None for name in program.variables()}
        variables["event"] = dict(event)
        return program.execute(variables)
    except Exception:
        # Whatever the library raises (an absent field, a wrong type, an overflow): null, never a lost event.
        return None


def _is_path(source: str) -> bool:
    return source not in _LITERALS and _PATH.fullmatch(source) is not None


@lru_cache(maxsize=2048)
def _compiled(source: str) -> Any:
    try:
        return cel.compile(source)
    except Exception as error:
        raise ExpressionRefused(str(error)) from None
