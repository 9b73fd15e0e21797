"""Turns the shape errors of msgspec into refusals that a person who never saw Python understands."""

import re
from typing import Final

from protocol.names import shown
from protocol.refused import MessageRefused

_STEPS = re.compile(r"\[(\d+)\]|\.([^.\[\]]+)")
_EXPECTED = re.compile(r"Expected `(.+?)`(?:, got `(.+?)`| (.*))?$")
_MISSING = re.compile(r"Object missing required field `(.+)`")
_INVALID = re.compile(r"Invalid (?:enum )?value (.+)", re.DOTALL)
_WORDS: Final = {
    "int": "an integer",
    "float": "a number",
    "str": "a text",
    "bool": "true or false",
    "null": "null",
    "array": "a list",
    "object": "an object",
    "datetime": "an instant such as 2026-01-31T09:00:00Z",
}


def explain_shape(fault: str) -> MessageRefused:
    """The refusal for the text of a msgspec.ValidationError."""
    place = ""
    # The last one: the value quoted before it may hold the same words.
    before, mark, path = fault.rpartition(" - at `")
    if mark:
        fault = before
        place = "".join("/" + (index or name) for index, name in _STEPS.findall(path.removeprefix("key in ").strip("$`")))
    here = f"`{place}`" if place else "The message"
    missing = _MISSING.fullmatch(fault)
    if missing:
        return MessageRefused("missing_field", f"{here} lacks the field `{missing[1]}`.", place)
    invalid = _INVALID.fullmatch(fault)
    if invalid:
        return _unknown_word(shown(invalid[1].strip("'")), place, here)
    expected = _EXPECTED.fullmatch(fault)
    if expected is None:
        return MessageRefused("bad_field", f"{here}: {fault}.", place)
    wanted, got, bound = expected.groups()
    if bound:
        return MessageRefused("out_of_range", f"{here} should be {_words(wanted)} {bound}.", place)
    if got is None:
        return MessageRefused("bad_field", f"{here} should be {_words(wanted)}.", place)
    return MessageRefused("bad_field", f"{here} should be {_words(wanted)}, but is {_words(got)}.", place)


def _unknown_word(word: str, place: str, here: str) -> MessageRefused:
    if place.endswith("/op"):
        return MessageRefused("unknown_op", f"{here} is {word}, which is no op of protocol version 1.", place)
    if place == "/type" or place.endswith("/type"):
        return MessageRefused("wrong_type", f"{here} is {word}, which does not belong here.", place)
    return MessageRefused("bad_field", f"{here} is {word}, which is not one of the words allowed there.", place)


def _words(types: str) -> str:
    return " or ".join(_WORDS.get(each.strip(), each.strip()) for each in types.split("|"))
