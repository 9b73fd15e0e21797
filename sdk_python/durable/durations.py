"""Lengths of time as people write them: "2d", "1h30m", 30 (seconds), a timedelta. They travel as seconds only.

All arithmetic is in whole microseconds, which a double holds exactly for a hundred years, so that every SDK
computes the same number.
"""

import re
from datetime import timedelta
from typing import Final, TypeAlias

Duration: TypeAlias = str | int | float | timedelta

# 100 years of 365 days. A longer one is a mistake in units.
SECONDS_MAX: Final = 36_500 * 86_400

_UNIT_MILLISECONDS: Final = {"w": 604_800_000, "d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}
# One optional group per unit, largest first: the order and "each at most once" need no code.
_TEXT = re.compile("".join(rf"(?:([0-9]{{1,12}}(?:\.[0-9]{{1,3}})?){unit}(?![a-z]))?" for unit in _UNIT_MILLISECONDS))


class DurationRefused(ValueError):
    """The value is no length of time; the message says why and how to write one."""

    code: Final = "bad_duration"


def parse_duration(value: Duration) -> float:
    """The seconds of "500ms", "30s", "5m", "2h", "2d", "1w", "1h30m", "1.5h", of a timedelta, or of a number."""
    if isinstance(value, str):
        return _parse_text(value)
    if isinstance(value, timedelta):
        value = value / timedelta(seconds=1)
    elif isinstance(value, bool) or not isinstance(value, int | float):
        raise DurationRefused(f'A length of time is a text such as "2d", a number of seconds or a timedelta, not {value!r:.60}.')
    # In this form NaN is refused too.
    if not 0 <= value <= SECONDS_MAX:
        raise DurationRefused(f"A length of time is 0 to {SECONDS_MAX} seconds (100 years), not {value!r:.40}.")
    return float(value)


def _parse_text(text: str) -> float:
    found = _TEXT.fullmatch(text)
    if found is None or not text:
        raise DurationRefused(
            f"{text[:40]!r} is no length of time. Write numbers with units (w d h m s ms), the largest first, each once and "
            'without spaces: "500ms", "30s", "5m", "2h", "2d", "1w", "1h30m", "1.5h".'
        )
    parts = [(number, unit) for number, unit in zip(found.groups(), _UNIT_MILLISECONDS, strict=True) if number is not None]
    microseconds = 0
    for index, (number, unit) in enumerate(parts):
        whole, point, fraction = number.partition(".")
        if point and index < len(parts) - 1:
            raise DurationRefused(f"{text[:40]!r} has a fraction in the middle; only the last part may have one.")
        microseconds += int(whole + fraction.ljust(3, "0")) * _UNIT_MILLISECONDS[unit]
    if microseconds > SECONDS_MAX * 1_000_000:
        raise DurationRefused(f"{text[:40]!r} is longer than 100 years ({SECONDS_MAX} seconds).")
    return microseconds / 1_000_000
