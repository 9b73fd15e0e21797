"""Event keys: bearer texts (`dek_…`) that may send events to one workspace and do nothing else. Stored as their SHA-256."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256

import msgspec

from engine.store.sql import Connection, Sql

EVENT_KEY_PREFIX = "dek_"

INSERT_EVENT_KEY = Sql(
    "insert_event_key",
    "INSERT INTO event_key (key_sha256, workspace_id, label) VALUES ($key_sha256, $workspace_id, $label)",
)
LIST_EVENT_KEYS = Sql(
    "list_event_keys",
    """
SELECT encode(key_sha256, 'hex') AS key_id, label, created_at, revoked_at
  FROM event_key WHERE workspace_id = $workspace_id ORDER BY created_at DESC, key_sha256""",
)
FIND_EVENT_KEY = Sql(
    "find_event_key",
    """
SELECT workspace.workspace_id, workspace.app, workspace.env
  FROM event_key JOIN workspace USING (workspace_id)
 WHERE event_key.key_sha256 = $key_sha256 AND event_key.revoked_at IS NULL""",
)
REVOKE_EVENT_KEY = Sql(
    "revoke_event_key",
    """
UPDATE event_key SET revoked_at = now()
 WHERE key_sha256 = $key_sha256 AND workspace_id = $workspace_id AND revoked_at IS NULL""",
)


class EventKeyEntry(msgspec.Struct, frozen=True):
    """An event key in a list. `key_id` is the hash of its text: it names the key and opens nothing."""

    key_id: str
    label: str
    created_at: datetime
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True)
class EventKeyOwner:
    """The workspace to which the bearer may send."""

    workspace_id: int
    app: str
    env: str


async def create_event_key(conn: Connection, workspace_id: int, label: str) -> tuple[str, str]:
    """Make a key; its id and its text, which is shown this once."""
    text = EVENT_KEY_PREFIX + secrets.token_urlsafe(32)
    key_sha256 = event_key_sha256(text)
    await conn.execute(INSERT_EVENT_KEY, key_sha256=key_sha256, workspace_id=workspace_id, label=label)
    return key_sha256.hex(), text


async def list_event_keys(conn: Connection, workspace_id: int) -> list[EventKeyEntry]:
    """All event keys of the workspace, the newest first, the revoked ones too."""
    return [EventKeyEntry(**row) for row in await conn.fetch(LIST_EVENT_KEYS, workspace_id=workspace_id)]


async def find_event_key(conn: Connection, key_sha256: bytes) -> EventKeyOwner | None:
    """Whose live key it is. The search is by hash, so its time says nothing about the text."""
    row = await conn.fetchrow(FIND_EVENT_KEY, key_sha256=key_sha256)
    return None if row is None else EventKeyOwner(**row)


async def revoke_event_key(conn: Connection, workspace_id: int, key_sha256: bytes) -> bool:
    """End a key; False when the workspace has no such live key."""
    return await conn.execute(REVOKE_EVENT_KEY, key_sha256=key_sha256, workspace_id=workspace_id) == 1


def event_key_sha256(text: str) -> bytes:
    return sha256(text.encode()).digest()
