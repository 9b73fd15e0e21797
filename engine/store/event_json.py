"""The JSON of an event as apps and waits get it: its data goes in as the text that came, never re-encoded."""

from __future__ import annotations

from datetime import datetime

import msgspec


def event_json(visible_id: str, name: str, data: str, received_at: datetime) -> str:
    """`{"id","name","data","received_at"}`."""
    head = msgspec.json.encode({"id": visible_id, "name": name}).decode()
    return f'{head[:-1]},"data":{data},"received_at":"{instant_text(received_at)}"}}'


def instant_text(instant: datetime) -> str:
    """RFC 3339 in UTC, with microseconds and `Z`."""
    return instant.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
