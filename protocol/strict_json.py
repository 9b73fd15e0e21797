"""Refuses JSON that some language could not carry unchanged (SPEC section 2), and says what is wrong where.

Good input is judged in C: one pass of the standard parser whose hooks are list.append, and a few searches.
Whenever anything is suspicious `find_fault` reads the text again, slowly, and alone decides. It never
changes a byte and keeps no value.
"""

import json
import math
import re
from array import array
from itertools import accumulate
from typing import Any, Final, NoReturn

from protocol.find_json_fault import JsonRefused, find_fault
from protocol.limits import PAYLOAD_DEPTH_MAX

__all__ = ["JsonRefused", "check"]

# A high surrogate with its low one, escaped. What is left of \ud8… to \udf… after these are taken out
# stands alone.
_PAIR = re.compile(r"\\u[dD][89aAbB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
# An opening bracket becomes the signed byte +1, a closing one −1.
_STEP_OF_BRACKET: Final = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_NOT_BRACKETS: Final = bytes(sorted(set(range(256)) - set(b"[]{}")))
# 2⁵³−1 has 16 digits; with a sign 17 characters. Shorter literals need no look.
_SAFE_INTEGER_CHARACTERS: Final = 15


def check(raw: bytes | str, *, max_depth: int = PAYLOAD_DEPTH_MAX) -> None:
    """Return if `raw` is one JSON value that every language can carry unchanged; else JsonRefused, with
    code and place.
    """
    if not _is_plainly_good(raw, max_depth):
        fault = find_fault(raw, max_depth=max_depth)
        if fault is not None:
            raise fault


def _is_plainly_good(raw: bytes | str, max_depth: int) -> bool:
    """True only for good input. False means: look closely."""
    objects: list[list[tuple[str, Any]]] = []
    integers: list[str] = []
    reals: list[str] = []
    try:
        text = raw.decode("utf-8") if isinstance(raw, bytes) else raw
        if not isinstance(raw, bytes):
            text.encode("utf-8")  # lone surrogates that are characters already
        json.JSONDecoder(
            object_pairs_hook=objects.append,
            parse_int=integers.append,
            parse_float=reals.append,
            parse_constant=_refuse_constant,
        ).decode(text)
    except (ValueError, RecursionError):
        return False
    return (
        list(map(len, objects)) == list(map(len, map(dict, objects)))
        and (not integers or max(map(len, integers)) <= _SAFE_INTEGER_CHARACTERS)
        and (not reals or _are_doubles(reals))
        and ("\\" not in text or _has_plain_escapes(text))
        and (text.count("[") + text.count("{") <= max_depth or _is_shallow(text, max_depth))
    )


def _are_doubles(reals: list[str]) -> bool:
    # Without an exponent it takes 309 digits to overflow.
    joined = "".join(reals)
    if "e" not in joined and "E" not in joined and max(map(len, reals)) <= 300:
        return True
    return max(map(abs, map(float, reals))) < math.inf


def _has_plain_escapes(text: str) -> bool:
    # Spaces, not nothing: the halves of a pair around an escaped backslash must not meet.
    text = text.replace("\\\\", "  ")
    return "\\u0000" not in text and _SURROGATE.search(_PAIR.sub("", text)) is None


def _is_shallow(text: str, max_depth: int) -> bool:
    """Whether valid JSON nests at most max_depth deep."""
    # Without escaped quotes every second piece between quotes is outside strings, and plain ASCII.
    outside = text.replace("\\\\", "").replace('\\"', "").split('"')[::2]
    steps = "".join(outside).encode("ascii", "ignore").translate(_STEP_OF_BRACKET, _NOT_BRACKETS)
    return max(accumulate(array("b", steps)), default=0) <= max_depth


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)
