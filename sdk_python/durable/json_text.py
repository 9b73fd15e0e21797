"""Values of user code into JSON that every language carries unchanged, and back (protocol section 2).

Owns what a step may return and an event may hold: None, bool, int, float, str, list, tuple, dict with texts as
keys. Everything else is refused with its place; nothing is converted silently, so that a value is not a datetime
today and a text on replay.
"""

import math
import re
from array import array
from itertools import accumulate
from typing import Any, Final

import msgspec

DEPTH_MAX: Final = 100
INTEGER_MAX: Final = 2**53 - 1
RESULT_BYTES_MAX: Final = 4 << 20

_ENCODER: Final = msgspec.json.Encoder()
_DECODER: Final = msgspec.json.Decoder()
# 16 digits that are not the fraction of a number: perhaps an integer beyond 2⁵³−1 (or digits in a text).
_LONG_NUMBER = re.compile(rb"(?<![0-9.])[0-9]{16}")
_DIGITS_TO_ZERO: Final = bytes.maketrans(b"123456789", b"0" * 9)
_SURROGATE = re.compile("[\ud800-\udfff]")
_STEP_OF_BRACKET: Final = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_NOT_BRACKETS: Final = bytes(sorted(set(range(256)) - set(b"[]{}")))
_PLACE_CHARACTERS_MAX: Final = 200


class ValueRefused(ValueError):
    """The value can not be JSON. The message says where and why; `place` is a JSON pointer to the part at fault."""

    def __init__(self, code: str, message: str, place: str) -> None:
        super().__init__(message)
        self.code = code
        self.place = place


class TypeRefused(TypeError):
    """The value holds an object that is no JSON. Convert it yourself: `.isoformat()`, `str(…)`, `dataclasses.asdict(…)`."""

    def __init__(self, code: str, message: str, place: str) -> None:
        super().__init__(message)
        self.code = code
        self.place = place


def encode_result(value: object, *, where: str, bytes_max: int = RESULT_BYTES_MAX) -> bytes:
    """The JSON of `value`, or TypeError or ValueError that name the part at fault. `where` begins their messages:
    "the result of step 'load'".
    """
    return encode_and_read_back(value, where=where, bytes_max=bytes_max)[0]


def encode_and_read_back(value: object, *, where: str, bytes_max: int = RESULT_BYTES_MAX) -> tuple[bytes, Any]:
    """`encode_result`, and what `decode` would give for it: a value of its own that shares nothing with `value`."""
    plain = _encode_plain(value)
    if plain is None:
        encoded = _ENCODER.encode(_Inspection(where).copy(value, 0))
        plain = encoded, _DECODER.decode(encoded)
    encoded = plain[0]
    if len(encoded) > bytes_max:
        raise ValueRefused(
            "too_large",
            f"{_capital(where)} has {len(encoded):,} bytes as JSON; {bytes_max:,} are allowed. Store it elsewhere and pass "
            "a reference to it.",
            "",
        )
    return plain


def decode(raw: bytes | msgspec.Raw) -> Any:
    """The value of a payload: None, bool, int, float, str, list, dict. ValueError if it is no JSON."""
    try:
        return _DECODER.decode(raw)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as fault:
        raise ValueRefused("invalid_json", f"The payload is no JSON: {fault}.", "") from None


def _encode_plain(value: object) -> tuple[bytes, Any] | None:
    """The JSON and what it says, when everything is plainly good; None means: look closely. All passes are in C.

    The encoder alone would turn a datetime into a text and NaN into null: so it must decode to an equal value.
    """
    try:
        encoded = _ENCODER.encode(value)
        # `is True`: an object with an == of its own (an array) may give anything.
        decoded = _DECODER.decode(encoded)
        if (decoded == value) is not True:
            return None
    except Exception:  # also of an __eq__ of the user's
        return None
    if b"\\u0000" in encoded or _may_hold_long_integer(encoded):
        return None
    if encoded.count(b"[") + encoded.count(b"{") > DEPTH_MAX and not _is_shallow(encoded):
        return None
    return encoded, decoded


def _may_hold_long_integer(encoded: bytes) -> bool:
    # The first look costs a twentieth of the second, and only many digits need that.
    return b"0" * 16 in encoded.translate(_DIGITS_TO_ZERO) and _LONG_NUMBER.search(encoded) is not None


def _is_shallow(encoded: bytes) -> bool:
    # Without escaped quotes, every second piece between quotes is outside of texts.
    outside = b"".join(encoded.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])
    brackets = outside.translate(_STEP_OF_BRACKET, _NOT_BRACKETS)
    return max(accumulate(array("b", brackets)), default=0) <= DEPTH_MAX


class _Inspection:
    """The slow, exact way: copies a value into plain JSON types, or raises at the first part that is none."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._path: list[str | int] = []

    def copy(self, value: object, depth: int) -> object:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, int):
            return self._integer(int(value))
        if isinstance(value, float):
            return self._number(float(value))
        if isinstance(value, dict):
            self._require_depth(depth)
            return {self._key(key): self._inside(key, item, depth) for key, item in value.items()}
        if isinstance(value, list | tuple):
            self._require_depth(depth)
            return [self._inside(index, item, depth) for index, item in enumerate(value)]
        raise self._type_refused("bad_type", f"is a {_type_name(value)}, which is no JSON. {_advice(value)}")

    def _inside(self, step: Any, value: object, depth: int) -> object:
        self._path.append(step)
        copied = self.copy(value, depth + 1)
        self._path.pop()
        return copied

    def _text(self, value: str) -> str:
        # str(…) of a text enum would be its name; this is its text.
        text = str.__str__(value)
        if "\0" in text:
            raise self._value_refused("null_character", "holds the character U+0000, which databases can not store")
        if _SURROGATE.search(text) is not None:
            raise self._value_refused("lone_surrogate", "holds half of a surrogate pair, which is no character")
        return text

    def _integer(self, value: int) -> int:
        if abs(value) > INTEGER_MAX:
            raise self._value_refused(
                "integer_range", "is an integer beyond ±(2⁵³−1), which other languages can not hold. Pass it as a text"
            )
        return value

    def _number(self, value: float) -> float:
        if not math.isfinite(value):
            raise self._value_refused("not_finite", f"is {value}, which JSON does not have. Pass None or a text")
        return value

    def _key(self, key: object) -> str:
        if not isinstance(key, str):
            raise self._type_refused(
                "bad_key", f"has the key {_shown(key)} ({_type_name(key)}); keys in JSON are texts. Use str(key)"
            )
        return self._text(key)

    def _require_depth(self, depth: int) -> None:
        if depth >= DEPTH_MAX:
            raise self._value_refused("too_deep", f"nests deeper than {DEPTH_MAX} levels (or holds itself). Make it flatter")

    def _value_refused(self, code: str, words: str) -> ValueRefused:
        return ValueRefused(code, self._sentence(words), self._pointer())

    def _type_refused(self, code: str, words: str) -> TypeRefused:
        return TypeRefused(code, self._sentence(words), self._pointer())

    def _sentence(self, words: str) -> str:
        place = "".join(f"[{_shown(step)}]" for step in self._path)
        at = f" at {_shortened(place)}" if place else ""
        return f"{_capital(self._where)}{at} {words}".rstrip(".") + "."

    def _pointer(self) -> str:
        return _shortened("".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in self._path))


def _type_name(value: object) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _advice(value: object) -> str:
    name = type(value).__name__
    if name in ("datetime", "date", "time"):
        return "Pass value.isoformat()"
    if name in ("Decimal", "UUID", "Fraction") or hasattr(value, "__fspath__"):
        return "Pass str(value)"
    if name in ("set", "frozenset"):
        return "Pass sorted(value) or list(value)"
    if name in ("bytes", "bytearray", "memoryview"):
        return "Pass a text, for example base64"
    if hasattr(value, "__await__"):
        return "It was not awaited"
    return "Pass None, bool, int, float, str, a list, or a dict with texts as keys"


def _shown(step: object) -> str:
    try:
        return _shortened(ascii(step))
    except Exception:  # a __repr__ of the user's
        return "…"


def _shortened(text: str) -> str:
    return text if len(text) <= _PLACE_CHARACTERS_MAX else text[: _PLACE_CHARACTERS_MAX - 1] + "…"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
