"""A message about many runs with something wrong in it, read part by part, so that one run's fault stays
with that run.

The slow road: a good message never comes here. A fault outside of the parts, or in a part that does not
even name its run, refuses the whole message.
"""

import re
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import msgspec
from msgspec import Raw, Struct

from protocol import limits, names, strict_json
from protocol.explain_shape import explain_shape
from protocol.manifest import Workspace
from protocol.refused import MessageRefused
from protocol.requests import Refusal, RefusedEntry
from protocol.strict_json import JsonRefused

T = TypeVar("T", bound=Struct)


class _Head(Struct):
    run_id: str
    generation: int


class LooseCheckpoint(Struct, tag_field="type", tag="checkpoint"):
    """A checkpoint whose entries are not looked into yet."""

    workspace: Workspace
    entries: list[Raw]

    def parts(self) -> list[Raw]:
        return self.entries


class LooseInvoked(Struct, tag_field="type", tag="invoked"):
    """A plain reply whose lines are not looked into yet."""

    results: list[Raw]

    def parts(self) -> list[Raw]:
        return self.results


L = TypeVar("L", LooseCheckpoint, LooseInvoked)

_HEADS: Final = msgspec.json.Decoder(_Head)
_LOOSE: Final = msgspec.json.Decoder(LooseCheckpoint | LooseInvoked)
# An escape; the group catches half of a surrogate pair that stands alone.
_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL
)


def read_part_by_part(
    raw: bytes,
    refused: MessageRefused,
    loose_type: type[L],
    field: str,
    read_part: Callable[[bytes], T],
) -> tuple[L, list[T], list[RefusedEntry]]:
    """The message around the parts, the good parts, and the refused ones.

    `refused` is what was wrong with the whole; it is raised again when it lies outside of a part.
    """
    if re.match(rf"/{field}/[0-9]+", refused.place) is None:
        raise refused
    legible = _legible(raw)
    try:
        loose = _LOOSE.decode(legible)
    except msgspec.ValidationError as fault:
        raise explain_shape(str(fault)) from None
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        raise refused from None
    if not isinstance(loose, loose_type):
        raise refused
    good: list[T] = []
    bad: list[RefusedEntry] = []
    for index, part in enumerate(_cut_out(raw, legible, loose.parts(), refused)):
        try:
            good.append(read_part(part))
        except MessageRefused as part_refused:
            bad.append(refuse_part(part, part_refused, f"/{field}/{index}"))
    return loose, good, bad


def refuse_part(part: bytes, refused: MessageRefused, place: str) -> RefusedEntry:
    """The refusal of one part for its run; raised instead when the part does not plainly name its run."""
    whole = MessageRefused(refused.code, f"In `{place}`: {refused.message}" if place else refused.message, place + refused.place)
    if refused.place in ("", "/run_id", "/generation") and isinstance(refused, JsonRefused):
        raise whole
    try:
        head = _HEADS.decode(_legible(part))
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        raise whole from None
    if names.run_problem(head.run_id) or not 1 <= head.generation <= limits.INTEGER_MAX:
        raise whole
    return RefusedEntry(head.run_id, head.generation, Refusal(refused.code, refused.message, place=whole.place))


def _legible(raw: bytes) -> bytes:
    """The same length of JSON without lone surrogates, at which msgspec would stop."""
    return _ESCAPE.sub(lambda escape: b"\\ufffd" if escape[1] else escape[0], raw)


def _cut_out(raw: bytes, legible: bytes, parts: Sequence[Raw], refused: MessageRefused) -> list[bytes]:
    """The bytes of each part; what stands around them is checked as strictly as a good message is."""
    cut: list[bytes] = []
    around: list[bytes] = []
    at = 0
    for part in parts:
        part_bytes = bytes(part)
        # Only objects can be found again by their bytes: a number could be a piece of another one.
        if not part_bytes.startswith(b"{"):
            raise refused
        found = legible.index(part_bytes, at)
        around.append(raw[at:found])
        at = found + len(part_bytes)
        cut.append(raw[found:at])
    around.append(raw[at:])
    strict_json.check(b"{}".join(around))
    return cut
