"""Reads the body of a request within its limit: refused by its announced length before it is read, and while it comes otherwise.

Bodies have to be whole before their signature can be checked, so strangers can make the engine hold them; large ones share a
budget.
"""

from __future__ import annotations

from collections.abc import AsyncIterable
from typing import Final

import trio

from engine.api.refusals import ApiRefused

# Below this size a body is not worth counting.
SMALL_BYTES: Final = 1 << 20
LARGE_BODIES_BYTES_MAX: Final = 256 << 20
BODY_SECONDS_MAX: Final = 60


class BodyMemory:
    """The bytes of large bodies that are held now, in all requests."""

    def __init__(self, bytes_max: int = LARGE_BODIES_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._held = 0

    def take(self, added_bytes: int) -> None:
        if self._held + added_bytes > self._bytes_max:
            raise ApiRefused(
                "body_memory_full",
                "Too many large bodies are being read at once.",
                "Send it again after the time in retry-after, or in smaller parts.",
            )
        self._held += added_bytes

    def give_back(self, taken_bytes: int) -> None:
        self._held -= taken_bytes


async def read_body(
    announced_bytes: int | None, body: AsyncIterable[bytes], bytes_max: int, memory: BodyMemory
) -> tuple[bytes, int]:
    """The whole body, and how much of `memory` was taken for it, which the caller gives back."""
    if announced_bytes is not None and announced_bytes > bytes_max:
        raise _too_large(bytes_max)
    parts: list[bytes] = []
    size_bytes = taken_bytes = 0
    try:
        with trio.fail_after(BODY_SECONDS_MAX):
            async for part in body:
                parts.append(part)
                size_bytes += len(part)
                if size_bytes > bytes_max:
                    raise _too_large(bytes_max)
                if size_bytes > SMALL_BYTES and size_bytes > taken_bytes:
                    # By the announced length at once, so that two half-read bodies never wait for each other's rest.
                    wanted_bytes = max(size_bytes, announced_bytes or 0)
                    memory.take(wanted_bytes - taken_bytes)
                    taken_bytes = wanted_bytes
    except trio.TooSlowError:
        memory.give_back(taken_bytes)
        raise ApiRefused("body_timeout", f"The body did not come within {BODY_SECONDS_MAX} s.", "Send it again.") from None
    except BaseException:
        memory.give_back(taken_bytes)
        raise
    return b"".join(parts), taken_bytes


def _too_large(bytes_max: int) -> ApiRefused:
    return ApiRefused(
        "body_too_large",
        f"The body is larger than the {bytes_max:,} bytes that this address takes.",
        "Send it in several requests.",
    )
