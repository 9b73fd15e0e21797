"""The slow reader of JSON: finds the first fault in reading order, with its code, JSON pointer and offset.

It is the definition of what `strict_json.check` refuses. It keeps its own stack, so a hundred thousand
brackets cost memory of their own and not the interpreter's recursion; it keeps no values, only the keys of
open objects.
"""

import math
import re
from dataclasses import dataclass, field
from typing import Final

from protocol.limits import INTEGER_MAX
from protocol.refused import MessageRefused

_BLANK = re.compile(r"[ \t\n\r]*")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_CONSTANT = re.compile(r"-?Infinity|-?NaN")
_WORD = re.compile(r"true|false|null")
# Runs of a string that need no look: no quote, backslash, control character, nor a surrogate (a character
# only by mistake).
_PLAIN_RUN = re.compile(r'[^"\\\x00-\x1f\ud800-\udfff]*')
_UNICODE = re.compile(r"u([0-9a-fA-F]{4})")
_SHORT_ESCAPES: Final = {
    '"': '"',
    "\\": "\\",
    "/": "/",
    "b": "\b",
    "f": "\f",
    "n": "\n",
    "r": "\r",
    "t": "\t",
}
_POINTER_CHARACTERS_MAX: Final = 300


class JsonRefused(MessageRefused):
    """The bytes are not JSON that every language carries unchanged. Answer 400 with `code`, `message` and
    `place`.

    `place` is the JSON pointer of the value at fault (of the key's value for a duplicate key), `offset`
    counts bytes for bytes and characters for text. Codes: empty_json, byte_order_mark, invalid_utf8,
    invalid_json, trailing_text, duplicate_key, not_finite, number_overflow, integer_range, null_character,
    lone_surrogate, too_deep.
    """

    def __init__(self, code: str, message: str, place: str, offset: int) -> None:
        super().__init__(code, message, place)
        self.offset = offset


@dataclass(slots=True)
class _Open:
    """An array or object that has not ended. `keys` is None for an array."""

    keys: set[str] | None
    index: int = 0
    key: str = ""


@dataclass(slots=True)
class _Reader:
    text: str
    is_bytes: bool
    max_depth: int
    stack: list[_Open] = field(default_factory=list)


class _Fault(Exception):
    def __init__(self, code: str, offset: int, words: str) -> None:
        super().__init__(words)
        self.code = code
        self.offset = offset
        self.words = words


def find_fault(raw: bytes | str, *, max_depth: int) -> JsonRefused | None:
    """The first fault of `raw`, or None if it has none."""
    # surrogateescape turns each byte that is not UTF-8 into one lone surrogate, which the reader meets at
    # its place.
    text = raw.decode("utf-8", "surrogateescape") if isinstance(raw, bytes) else raw
    reader = _Reader(text, isinstance(raw, bytes), max_depth)
    try:
        _read(reader)
    except _Fault as fault:
        return _refusal(reader, fault)
    return None


def _read(reader: _Reader) -> None:
    text, stack = reader.text, reader.stack
    if text.startswith("\ufeff"):
        raise _Fault("byte_order_mark", 0, "begins with a byte order mark; send plain UTF-8 without it")
    at = _skip_blank(text, 0)
    if at == len(text):
        raise _Fault("empty_json", at, "is empty; send a JSON value")
    while True:
        at = _read_value(reader, at)
        # A negative place means that a non-empty array or object was opened: its first value comes next.
        if at < 0:
            at = -at
            continue
        while stack:
            at = _skip_blank(text, at)
            inner = stack[-1]
            if text.startswith(",", at):
                at = _skip_blank(text, at + 1)
                if inner.keys is None:
                    inner.index += 1
                else:
                    at = _read_key(reader, at)
                break
            if not text.startswith("]" if inner.keys is None else "}", at):
                raise _unexpected(reader, at, "`,` or `]`" if inner.keys is None else "`,` or `}`")
            at += 1
            stack.pop()
        else:
            at = _skip_blank(text, at)
            if at != len(text):
                raise _byte_fault(reader, at) or _Fault("trailing_text", at, "goes on after its end; send one value")
            return


def _read_value(reader: _Reader, at: int) -> int:
    """The place after a scalar or an empty container; or minus the place of the first value inside of an
    opened one.
    """
    text = reader.text
    first = text[at : at + 1]
    if first == '"':
        return _read_string(reader, at)[0]
    if first == "[" or first == "{":
        if len(reader.stack) == reader.max_depth:
            raise _Fault("too_deep", at, f"nests deeper than {reader.max_depth} levels; make it flatter")
        inside = _skip_blank(text, at + 1)
        if text.startswith("]" if first == "[" else "}", inside):
            return inside + 1
        reader.stack.append(_Open(None if first == "[" else set()))
        return -(inside if first == "[" else _read_key(reader, inside))
    word = _WORD.match(text, at)
    if word:
        return word.end()
    constant = _CONSTANT.match(text, at)
    if constant:
        raise _Fault("not_finite", at, f"holds {constant[0]}, which is no JSON; send null or a text")
    number = _NUMBER.match(text, at)
    if number is None:
        raise _unexpected(reader, at, "a value")
    _check_number(number, at)
    return number.end()


def _check_number(number: re.Match[str], at: int) -> None:
    if number[1] is None and number[2] is None:
        # The length first: int() of a long literal is slow and, past 4,300 digits, refused by Python itself.
        if len(number[0]) > 17 or abs(int(number[0])) > INTEGER_MAX:
            raise _Fault(
                "integer_range",
                at,
                "holds an integer beyond ±(2^53−1), which some languages round; send it as a text",
            )
    elif math.isinf(float(number[0])):
        raise _Fault("number_overflow", at, "holds a number that overflows a double; send it as a text")


def _read_key(reader: _Reader, at: int) -> int:
    """Read a key and its colon; the place of its value."""
    text, inner = reader.text, reader.stack[-1]
    if not text.startswith('"', at):
        # The pointer of a fault in a key's place is that of the object.
        inner.key = ""
        raise _unexpected(reader, at, "a key in double quotes", in_key=True)
    after, key = _read_string(reader, at, in_key=True)
    inner.key = key
    assert inner.keys is not None
    if key in inner.keys:
        raise _Fault("duplicate_key", at, "has the same key twice; languages differ in which one they keep")
    inner.keys.add(key)
    colon = _skip_blank(text, after)
    if not text.startswith(":", colon):
        raise _unexpected(reader, colon, "`:`")
    return _skip_blank(text, colon + 1)


def _read_string(reader: _Reader, at: int, *, in_key: bool = False) -> tuple[int, str]:
    """The place after the closing quote, and the text."""
    text = reader.text
    pieces: list[str] = []
    start, at = at, at + 1
    while True:
        run = _PLAIN_RUN.match(text, at)
        assert run is not None
        pieces.append(run[0])
        at = run.end()
        mark = text[at : at + 1]
        if mark == '"':
            return at + 1, "".join(pieces)
        if mark == "\\":
            at, piece = _read_escape(reader, at, in_key)
            pieces.append(piece)
            continue
        if mark == "":
            raise _KeyFault.of("invalid_json", start, "has a text that does not end", in_key)
        if mark < " ":
            raise _KeyFault.of(
                "invalid_json",
                at,
                f"has the control character U+{ord(mark):04X} in a text; escape it",
                in_key,
            )
        raise _byte_fault(reader, at, in_key) or _surrogate_fault(at, in_key)


def _read_escape(reader: _Reader, at: int, in_key: bool) -> tuple[int, str]:
    text = reader.text
    short = _SHORT_ESCAPES.get(text[at + 1 : at + 2])
    if short is not None:
        return at + 2, short
    escape = _UNICODE.match(text, at + 1)
    if escape is None:
        raise _KeyFault.of("invalid_json", at, "has an escape that JSON does not know", in_key)
    code = int(escape[1], 16)
    if code == 0:
        raise _KeyFault.of("null_character", at, "holds \\u0000, which databases can not store; leave it out", in_key)
    if not 0xD800 <= code <= 0xDFFF:
        return escape.end(), chr(code)
    low = _UNICODE.match(text, escape.end() + 1) if text.startswith("\\", escape.end()) else None
    if code >= 0xDC00 or low is None or not 0xDC00 <= int(low[1], 16) <= 0xDFFF:
        raise _surrogate_fault(at, in_key)
    return low.end(), chr(0x10000 + ((code - 0xD800) << 10) + (int(low[1], 16) - 0xDC00))


class _KeyFault(_Fault):
    """A fault inside of a key: there is no value yet, so the place is the object."""

    @staticmethod
    def of(code: str, offset: int, words: str, in_key: bool) -> _Fault:
        return (_KeyFault if in_key else _Fault)(code, offset, words)


def _surrogate_fault(at: int, in_key: bool) -> _Fault:
    return _KeyFault.of("lone_surrogate", at, "holds half of a surrogate pair, which is no character; send whole ones", in_key)


def _byte_fault(reader: _Reader, at: int, in_key: bool = False) -> _Fault | None:
    """The fault of a byte that is not UTF-8, if that is what stands there."""
    if reader.is_bytes and "\udc80" <= reader.text[at : at + 1] <= "\udcff":
        return _KeyFault.of("invalid_utf8", at, "is not valid UTF-8; encode texts as UTF-8", in_key)
    return None


def _unexpected(reader: _Reader, at: int, wanted: str, *, in_key: bool = False) -> _Fault:
    if at >= len(reader.text):
        return _KeyFault.of("invalid_json", at, f"ends where {wanted} should be; is it cut off?", in_key)
    return _byte_fault(reader, at, in_key) or _KeyFault.of(
        "invalid_json", at, f"has {reader.text[at]!a} where {wanted} should be", in_key
    )


def _skip_blank(text: str, at: int) -> int:
    blank = _BLANK.match(text, at)
    assert blank is not None
    return blank.end()


def _refusal(reader: _Reader, fault: _Fault) -> JsonRefused:
    levels = reader.stack[:-1] if isinstance(fault, _KeyFault) else reader.stack
    place = "".join(f"/{_token(level)}" for level in levels)
    if len(place) > _POINTER_CHARACTERS_MAX:
        place = place[: _POINTER_CHARACTERS_MAX - 1] + "…"
    offset = fault.offset
    if reader.is_bytes:
        offset = len(reader.text[:offset].encode("utf-8", "surrogateescape"))
    unit = "byte" if reader.is_bytes else "character"
    where = f"at {ascii(place)[1:-1]} " if place else ""
    return JsonRefused(fault.code, f"The JSON {where}({unit} {offset}) {fault.words}.", place, offset)


def _token(level: _Open) -> str:
    return str(level.index) if level.keys is None else level.key.replace("~", "~0").replace("/", "~1")
