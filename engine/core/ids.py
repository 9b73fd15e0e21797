"""Ids that sort by time: UUID version 7 (RFC 9562), made from an instant and random bytes that the caller gives.

The millisecond in front makes a run's rows neighbours in every index; the order inside a millisecond is random.
"""

from __future__ import annotations

from typing import NewType
from uuid import NAMESPACE_OID, UUID, uuid5

RunId = NewType("RunId", UUID)
EventId = NewType("EventId", UUID)
EngineId = NewType("EngineId", UUID)

# The two highest bits of the variant's digit are 10; the others are random.
_VARIANT = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}


def uuid7(unix_ms: int, random_bytes: bytes) -> UUID:
    """A version 7 UUID from milliseconds since 1970 and 10 random bytes."""
    random_bits = int.from_bytes(random_bytes[:10], "big")
    value = (unix_ms & 0xFFFF_FFFF_FFFF) << 80
    value |= 0x7 << 76
    value |= ((random_bits >> 62) & 0xFFF) << 64
    value |= 0b10 << 62
    value |= random_bits & 0x3FFF_FFFF_FFFF_FFFF
    return UUID(int=value)


def uuid7_tails(random_bytes: bytes, count: int) -> list[str]:
    """The last 20 hexadecimal digits of `count` version 7 UUIDs, for whoever has the 12 of the instant; 10 random bytes each."""
    digits = random_bytes.hex()
    return [f"7{digits[i : i + 3]}{_VARIANT[digits[i + 3]]}{digits[i + 4 : i + 19]}" for i in range(0, count * 20, 20)]


def sent_event_id(run_id: UUID, step_id: str, index: int) -> str:
    """The id of the index-th event that a step sends: the same on every try, so that it is sent once."""
    return str(uuid5(NAMESPACE_OID, f"{run_id}/{step_id}/{index}"))
