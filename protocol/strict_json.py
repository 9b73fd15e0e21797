"""Refuses JSON that some language could not carry unchanged (SPEC section 2), and says what is wrong where.

Good input is judged in C: msgspec reads it and writes it again, which shows the keys that it dropped, and a few searches do
the rest. Whenever anything is suspicious `find_fault` reads the text again, slowly, and alone decides. It never changes a byte
and keeps no value.
"""

import re
from array import array
from itertools import accumulate
from typing import Final

import msgspec

from protocol.find_json_fault import JsonRefused, find_fault
from protocol.limits import PAYLOAD_DEPTH_MAX

__all__ = ["JsonRefused", "check", "is_shallow"]

_DECODER: Final = msgspec.json.Decoder()
_ENCODER: Final = msgspec.json.Encoder()

# Digits as 0, what an integer begins after as a space, all else as neither. The digits of a fraction, or of a name in quotes,
# are no integers.
_INTEGERS_SHOWN: Final = bytes(0x30 if byte in b"0123456789" else 0x20 if byte in b"-[,: \t\n\r" else 0x78 for byte in range(256))
# 2⁵³−1 has 16 digits: an integer with fewer is in range.
_LONG_INTEGER: Final = b" " + b"0" * 16
# Escapes that need a close look: U+0000, and U+003A, which would be counted as a colon.
_ODD_ESCAPE = re.compile(rb"\\u00(?:00|3[aA])")
_NOT_BRACKETS_OR_QUOTES: Final = bytes(sorted(set(range(256)) - set(b'[]{}"')))
# An opening bracket becomes the signed byte +1, a closing one −1.
_STEP_OF_BRACKET: Final = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")


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
    try:
        if isinstance(raw, str):
            raw = raw.encode("utf-8")  # not lone surrogates that are characters already
        # Refuses what is no JSON or no UTF-8, lone surrogates as escapes, and numbers that overflow a
        # double.
        value = _DECODER.decode(raw)
        shown = raw.translate(_INTEGERS_SHOWN)
        if _LONG_INTEGER in shown or shown.startswith(_LONG_INTEGER[1:]):
            return False
        # Each key has its colon. Colons inside of texts are written as they were read, unless they were escaped; what is
        # missing afterwards are the colons of keys that came twice, or a colon in such a key's value.
        if raw.count(b":") != _ENCODER.encode(value).count(b":"):
            return False
    except (ValueError, RecursionError, msgspec.MsgspecError):
        return False
    return (b"\\u" not in raw or _ODD_ESCAPE.search(raw) is None) and is_shallow(raw, max_depth)


def is_shallow(raw: bytes, max_depth: int) -> bool:
    """Whether valid JSON nests at most max_depth deep."""
    if raw.count(b"[") + raw.count(b"{") <= max_depth:
        return True
    if b"\\" in raw:
        raw = raw.replace(b"\\\\", b"").replace(b'\\"', b"")
    # Each text without brackets becomes two quotes, which are taken out. When no quote is left, no text has brackets: the
    # opening quote of the first such text would be left, since before it quotes come in pairs.
    brackets = raw.translate(None, _NOT_BRACKETS_OR_QUOTES).replace(b'""', b"")
    if b'"' in brackets:
        # Every second piece between quotes is outside of texts.
        brackets = b"".join(raw.split(b'"')[::2]).translate(None, _NOT_BRACKETS_OR_QUOTES)
    return max(accumulate(array("b", brackets.translate(_STEP_OF_BRACKET))), default=0) <= max_depth
