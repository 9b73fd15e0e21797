"""The rule for step ids that handlers write: 1–256 characters, no control characters, no ending of `#` and digits."""

import re
import unicodedata
from typing import Final

from durable.errors import StepUsageError

STEP_ID_CHARACTERS_MAX: Final = 256
_COUNTED = re.compile(r"#[0-9]+\Z")


def check_step_id(step_id: str) -> None:
    """Raise StepUsageError when a step can not be called so."""
    if not isinstance(step_id, str):
        raise StepUsageError(f'A step id is a text, not {type(step_id).__name__}: step.run("load-user", …).')
    if step_id.isascii() and step_id.isprintable() and 0 < len(step_id) <= STEP_ID_CHARACTERS_MAX and "#" not in step_id:
        return
    if not 0 < len(step_id) <= STEP_ID_CHARACTERS_MAX:
        raise StepUsageError(
            f"A step id has 1 to {STEP_ID_CHARACTERS_MAX} characters; {step_id[:40]!r} has {len(step_id)}. "
            "Name what the step does, and give data as arguments."
        )
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in step_id):
        raise StepUsageError(f"The step id {step_id!r} has a control character. Leave it out.")
    if _COUNTED.search(step_id):
        raise StepUsageError(
            f"The step id {step_id!r} ends in `#` and digits, which counts repeats. Use another ending, such as `-7`."
        )
