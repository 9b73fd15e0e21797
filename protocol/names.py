"""The rules for names (SPEC section 1): app, environment, function id, event name, step id, run id.

A character is a Unicode code point. Every function answers None, or one sentence that says what is wrong
with the name.
"""

import re
import unicodedata
from typing import Final

from protocol.limits import REF_CHARACTERS_MAX

_APP = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_ENVIRONMENT = re.compile(r"[a-z][a-z0-9-]{0,31}")
_FUNCTION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_RUN = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_COUNTED = re.compile(r"(.*)#([2-9]|[1-9][0-9]{1,8})", re.DOTALL)
_ENDS_IN_COUNT = re.compile(r".*#[0-9]+", re.DOTALL)

RESERVED_EVENT_PREFIX: Final = "durable."
TEXT_CHARACTERS_MAX: Final = 256
EVENT_ID_CHARACTERS_MAX: Final = 128


def app_problem(text: str) -> str | None:
    if _APP.fullmatch(text):
        return None
    return f"The app name {shown(text)} must be 1–63 of a-z, 0-9, `_`, `-`, beginning with a letter or digit."


def environment_problem(text: str) -> str | None:
    if _ENVIRONMENT.fullmatch(text):
        return None
    return f"The environment {shown(text)} must be 1–32 of a-z, 0-9, `-`, beginning with a letter."


def function_problem(text: str) -> str | None:
    if _FUNCTION.fullmatch(text):
        return None
    return f"The function id {shown(text)} must be 1–128 of letters, digits, `_`, `.`, `-`, beginning with a letter or digit."


def run_problem(text: str) -> str | None:
    if _RUN.fullmatch(text):
        return None
    return f"The run id {shown(text)} must be a UUID in lower case, such as 01990a3c-7d1e-7c3a-9b52-6f1f0e7f9a10."


def event_name_problem(text: str) -> str | None:
    return _text_problem("event name", text)


def is_reserved_event(text: str) -> bool:
    """Only the engine sends events of such a name; triggers and waits may name them."""
    return text.startswith(RESERVED_EVENT_PREFIX)


def step_id_problem(text: str) -> str | None:
    """The rule for an id as a user writes it, before an SDK counts repeats."""
    if "#" in text and _ENDS_IN_COUNT.fullmatch(text):
        return f"The step id {shown(text)} ends in `#` and digits; that ending counts repeats of one id. Choose another id."
    return _text_problem("step id", text)


def wire_step_id_problem(text: str) -> str | None:
    """The rule for an id on the wire: a user's id, or that with `#2`, `#3` … for its repeats."""
    counted = _COUNTED.fullmatch(text) if "#" in text else None
    return step_id_problem(counted[1] if counted else text)


def event_id_problem(text: str) -> str | None:
    """The rule for ids that deduplicate: of events and of starts."""
    if 1 <= len(text) <= EVENT_ID_CHARACTERS_MAX and not _has_control(text):
        return None
    return f"The id {shown(text)} must be 1–{EVENT_ID_CHARACTERS_MAX} characters without control characters."


def ref_problem(text: str) -> str | None:
    """The rule for references of values; what is in one is the engine's business."""
    if 1 <= len(text) <= REF_CHARACTERS_MAX and text.isascii() and text.isprintable():
        return None
    return f"The reference {shown(text)} must be 1–{REF_CHARACTERS_MAX} printable ASCII characters."


def process_problem(text: str) -> str | None:
    """The rule for the name that an app process gives itself."""
    if 1 <= len(text) <= 64 and text.isascii() and text.isprintable():
        return None
    return f"The process {shown(text)} must be 1–64 printable ASCII characters."


def split_workspace(text: str) -> tuple[str, str] | None:
    """`shop/dev` as ("shop", "dev"); `*/dev` as ("*", "dev"); None when it is no workspace."""
    app, slash, environment = text.partition("/")
    if not slash or environment_problem(environment) or (app != "*" and app_problem(app)):
        return None
    return app, environment


def shown(text: str) -> str:
    """A name of unknown origin, quoted, shortened and made printable, for messages and logs."""
    short = text if len(text) <= 80 else text[:79] + "…"
    return "`" + "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in short) + "`"


def _text_problem(what: str, text: str) -> str | None:
    if 1 <= len(text) <= TEXT_CHARACTERS_MAX and not _has_control(text):
        return None
    if not text:
        return f"The {what} is empty."
    if len(text) > TEXT_CHARACTERS_MAX:
        return f"The {what} {shown(text)} has {len(text)} characters; {TEXT_CHARACTERS_MAX} are allowed."
    return f"The {what} {shown(text)} has a control character in it."


def _has_control(text: str) -> bool:
    # isprintable is one C pass and answers for nearly every name; only the odd ones are looked at closely.
    return not text.isprintable() and any(unicodedata.category(c) == "Cc" for c in text)
