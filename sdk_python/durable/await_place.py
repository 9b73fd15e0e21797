"""Finds where a coroutine waits, as `file:line` of the user's code, for the warning about awaits outside of steps."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

_THIS_PACKAGE: Final = str(Path(__file__).parent)
_STANDARD_LIBRARY: Final = str(Path(asyncio.__file__).parent)


def find_await_place(coroutine: Any, is_inside: Callable[[str, str], bool]) -> str | None:
    """The line of the handler's code at which this suspended coroutine waits.

    None when the innermost frame is one in which tasks wait for each other (`is_inside(filename, function)`).
    """
    place = None
    filename = function = ""
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None)
        code = getattr(coroutine, "cr_code", None) or getattr(coroutine, "gi_code", None)
        if code is not None:
            if not code.co_filename.endswith("_traps.py"):  # Trio's last frame is the same for every wait
                filename, function = code.co_filename, code.co_name
            if frame is not None and not _is_library(filename):
                place = f"{filename}:{frame.f_lineno}"
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "gi_yieldfrom", None)
    if is_inside(filename, function):
        return None
    return place or f"{filename} in {function}"


def _is_library(filename: str) -> bool:
    return filename.startswith((_THIS_PACKAGE, _STANDARD_LIBRARY)) or "site-packages" in filename
