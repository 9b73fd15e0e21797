"""Lengths of time as people write them ("2d", "1h30m", 30) into seconds, and back. An SDK's convenience;
never on the wire.

All arithmetic is in whole microseconds, which stay below 2⁵³ for a hundred years, so every language gets
the same double.
"""

import math
import re
from typing import Final

from protocol.limits import LENGTH_SECONDS_MAX

_MICROSECONDS: Final = {
    "w": 604_800_000_000,
    "d": 86_400_000_000,
    "h": 3_600_000_000,
    "m": 60_000_000,
    "s": 1_000_000,
    "ms": 1_000,
}
_WHOLE = re.compile(r"(?:[0-9]{1,12}(?:\.[0-9]{1,3})?(?:ms|[wdhms]))+")
_PART = re.compile(r"([0-9]+)(?:\.([0-9]+))?(ms|[wdhms])")


class DurationRefused(ValueError):
    """The value is no length of time. The message says which rule it breaks; who wrote it must mend it."""

    code: Final = "bad_duration"


def parse_duration(value: str | int | float) -> float:
    """Seconds of "500ms", "30s", "5m", "2h", "2d", "1w", "1h30m", "1.5h", or of a number, which is seconds
    already.
    """
    if isinstance(value, str):
        return _parse_text(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DurationRefused(f'A length of time is a text such as "2d" or a number of seconds, not {type(value).__name__}.')
    if not math.isfinite(value) or not 0 <= value <= LENGTH_SECONDS_MAX:
        raise DurationRefused(f"The length of time {value} must be 0 to {LENGTH_SECONDS_MAX} seconds (100 years).")
    return float(value)


def format_duration(seconds: float) -> str:
    """The shortest text that `parse_duration` reads as these seconds, to the microsecond: 5400 is "1h30m"."""
    if not math.isfinite(seconds) or not 0 <= seconds <= LENGTH_SECONDS_MAX:
        raise DurationRefused(f"The length of time {seconds} must be 0 to {LENGTH_SECONDS_MAX} seconds (100 years).")
    left = round(seconds * 1_000_000)
    if left == 0:
        return "0s"
    text = ""
    for unit, microseconds in _MICROSECONDS.items():
        count, rest = divmod(left, microseconds)
        if unit == "ms" and rest:
            text += f"{count}.{rest:03d}".rstrip("0") + "ms"
        elif count:
            text += f"{count}{unit}"
        left = rest
    return text


def _parse_text(text: str) -> float:
    if _WHOLE.fullmatch(text) is None:
        raise DurationRefused(
            f"The length of time {text[:40]!r} is not understood. Write numbers with units, largest "
            "first and without spaces: "
            '"500ms", "30s", "5m", "2h", "2d", "1w", "1h30m", "1.5h".'
        )
    parts = _PART.findall(text)
    microseconds = 0
    units = list(_MICROSECONDS)
    last_place = -1
    for index, (whole, fraction, unit) in enumerate(parts):
        place = units.index(unit)
        if place <= last_place:
            raise DurationRefused(f"The length of time {text[:40]!r} must name each unit once, the largest first (w d h m s ms).")
        if fraction and index != len(parts) - 1:
            raise DurationRefused(
                f"The length of time {text[:40]!r} has a fraction before its last part; only the last may have one."
            )
        last_place = place
        thousandths = int(whole) * 1_000 + int((fraction or "0").ljust(3, "0"))
        microseconds += thousandths * (_MICROSECONDS[unit] // 1_000)
    if microseconds > LENGTH_SECONDS_MAX * 1_000_000:
        raise DurationRefused(f"The length of time {text[:40]!r} is longer than {LENGTH_SECONDS_MAX} seconds (100 years).")
    return microseconds / 1_000_000
