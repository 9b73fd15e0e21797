"""From raw bytes to a struct of the right type: strict JSON, then the shape, then how deep payloads nest.

The rules for names and limits are in `messages`; this file knows no single message. Raises `JsonRefused` or
`MessageRefused`.
"""

from collections.abc import Iterator
from typing import TypeVar

import msgspec
from msgspec import Raw, Struct

from protocol import limits, strict_json
from protocol.explain_shape import explain_shape
from protocol.refused import MessageRefused
from protocol.strict_json import JsonRefused

T = TypeVar("T", bound=Struct)
M = TypeVar("M")


def decode(raw: bytes, decoder: "msgspec.json.Decoder[M]", *, depth_max: int = limits.BODY_DEPTH_MAX) -> M:
    is_deep = False
    try:
        strict_json.check(raw, max_depth=limits.PAYLOAD_DEPTH_MAX)
    except JsonRefused as refused:
        if refused.code != "too_deep":
            raise
        # The body may be deeper than a payload by what the protocol puts around it; the payloads are looked
        # at below.
        strict_json.check(raw, max_depth=depth_max)
        is_deep = True
    try:
        message = decoder.decode(raw)
    except msgspec.ValidationError as fault:
        raise explain_shape(str(fault)) from None
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as fault:
        raise MessageRefused("invalid_json", f"The body can not be read: {fault}.") from None
    if is_deep:
        _check_depths(message)
    return message


def require_type(message: object, wanted: type[T], route_type: str) -> T:
    if isinstance(message, wanted):
        return message
    came = type(message).__struct_config__.tag if isinstance(message, Struct) else "something else"
    raise MessageRefused("wrong_type", f"Here belongs a message of type `{route_type}`, not `{came}`.", "/type")


def _check_depths(message: object) -> None:
    for payload, place in _payloads(message, ""):
        try:
            strict_json.check(bytes(payload), max_depth=limits.PAYLOAD_DEPTH_MAX)
        except JsonRefused as refused:
            raise MessageRefused(
                "too_deep",
                f"The payload at `{place}` nests deeper than {limits.PAYLOAD_DEPTH_MAX} levels; make it flatter.",
                place,
            ) from refused


def _payloads(value: object, place: str) -> Iterator[tuple[Raw, str]]:
    if isinstance(value, Raw):
        yield value, place
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _payloads(item, f"{place}/{index}")
    elif isinstance(value, Struct):
        for each in msgspec.structs.fields(value):
            yield from _payloads(getattr(value, each.name), f"{place}/{each.encode_name}")
