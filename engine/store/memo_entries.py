"""A row of the memo as it travels: with its data, or with a reference where the data is large and its reader can fetch it.

The statements that read the memo select these columns, so that a large value stays where it is (`octet_length` does not read it):

    CASE WHEN $has_refs AND octet_length(data) >= $ref_bytes_min THEN NULL ELSE data END AS data, octet_length(data) AS bytes
"""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

from msgspec import UNSET, Raw
from msgspec.structs import replace

from protocol.calls import MemoEntry

MEMO_REF: Final = "m:"


def memo_entry(row: Any, has_refs: bool) -> MemoEntry:
    """The entry of a row with run_id, step_id, kind, position, data, bytes, error and is_abandoned."""
    if row["data"] is None and row["bytes"] is not None and has_refs:
        return MemoEntry(
            row["step_id"],
            row["kind"],
            row["position"],
            abandoned=row["is_abandoned"],
            ref=memo_ref(row["run_id"], row["position"]),
            bytes=row["bytes"],
        )
    return MemoEntry(
        row["step_id"],
        row["kind"],
        row["position"],
        data=UNSET if row["data"] is None else Raw(row["data"].encode()),
        error=UNSET if row["error"] is None else Raw(row["error"].encode()),
        abandoned=row["is_abandoned"],
    )


def by_reference(run_id: UUID, entry: MemoEntry) -> MemoEntry:
    """The same entry with a reference instead of its data, for a call that would be too large otherwise."""
    if isinstance(entry.data, Raw):
        return replace(entry, data=UNSET, ref=memo_ref(run_id, entry.position), bytes=len(bytes(entry.data)))
    return entry


def memo_ref(run_id: UUID, position: int) -> str:
    """The reference of a memo entry: good for its own run, for as long as the run is kept."""
    return f"{MEMO_REF}{run_id}:{position}"


def memo_position(run_id: UUID, ref: str) -> int | None:
    """The position that a reference names in the memo of this run; None for any other text."""
    prefix = f"{MEMO_REF}{run_id}:"
    number = ref[len(prefix) :]
    # At most 9 digits: what is more is no position, and would not fit the column.
    if ref.startswith(prefix) and number.isascii() and number.isdigit() and len(number) <= 9:
        return int(number)
    return None
