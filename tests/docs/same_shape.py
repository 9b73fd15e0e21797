"""Whether JSON of a page looks like what the engine answers: the same names, and values of the same kinds. Values may differ."""

from __future__ import annotations

from typing import Any


def difference(shown: Any, real: Any, place: str = "") -> str | None:
    """The first place at which they differ; None when they do not. Null stands for anything, an empty list for any list."""
    if shown is None or real is None:
        return None
    if isinstance(shown, dict) and isinstance(real, dict):
        if set(shown) != set(real):
            return f"{place or '/'}: shown {sorted(shown)}, real {sorted(real)}"
        return _first(difference(shown[name], real[name], f"{place}/{name}") for name in shown)
    if isinstance(shown, list) and isinstance(real, list):
        # One of the real elements is like each that is shown: lists may hold several kinds.
        if real:
            for index, element in enumerate(shown):
                found = [difference(element, other, f"{place}/{index}") for other in real]
                if all(found):
                    return found[0]
        return None
    kinds = {bool: "boolean", int: "number", float: "number", str: "text", dict: "object", list: "list"}
    if kinds[type(shown)] != kinds[type(real)]:
        return f"{place or '/'}: shown a {kinds[type(shown)]}, real a {kinds[type(real)]}"
    return None


def _first(found: Any) -> str | None:
    return next((each for each in found if each is not None), None)
