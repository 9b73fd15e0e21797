"""Signing keys of workspaces: made, listed, read and revoked. At most two are live, so that one can replace the other.

The database holds them sealed; a key's text leaves here when it is made, and when messages are signed or verified.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID, uuid4

import msgspec

from engine.store.sealing import Sealer
from engine.store.sql import Connection, Sql
from protocol.signing import Key, new_key

LIVE_KEYS_MAX = 2

# The workspace's row serializes those who make keys: two at once would both see one live key.
LOCK_WORKSPACE_FOR_KEYS = Sql(
    "lock_workspace_for_keys", "SELECT 1 FROM workspace WHERE workspace_id = $workspace_id FOR NO KEY UPDATE"
)
COUNT_LIVE_SIGNING_KEYS = Sql(
    "count_live_signing_keys",
    "SELECT count(*) FROM signing_key WHERE workspace_id = $workspace_id AND revoked_at IS NULL",
)
INSERT_SIGNING_KEY = Sql(
    "insert_signing_key",
    "INSERT INTO signing_key (key_id, workspace_id, sealed_key) VALUES ($key_id, $workspace_id, $sealed_key)",
)
LIST_SIGNING_KEYS = Sql(
    "list_signing_keys",
    """
SELECT key_id, created_at, revoked_at
  FROM signing_key WHERE workspace_id = $workspace_id ORDER BY created_at DESC, key_id""",
)
READ_LIVE_SIGNING_KEYS = Sql(
    "read_live_signing_keys",
    """
SELECT workspace.workspace_id, signing_key.key_id, signing_key.sealed_key
  FROM workspace LEFT JOIN signing_key
       ON signing_key.workspace_id = workspace.workspace_id AND signing_key.revoked_at IS NULL
 WHERE workspace.app = $app AND workspace.env = $env
 ORDER BY signing_key.created_at, signing_key.key_id""",
)
REVOKE_SIGNING_KEY = Sql(
    "revoke_signing_key",
    """
UPDATE signing_key SET revoked_at = now()
 WHERE key_id = $key_id AND workspace_id = $workspace_id AND revoked_at IS NULL""",
)


class TooManyKeys(Exception):
    """The workspace has two live signing keys. Revoke one before making another."""

    code = "too_many_keys"


class SigningKeyEntry(msgspec.Struct, frozen=True):
    """A signing key in a list, without its secret."""

    key_id: UUID
    created_at: datetime
    revoked_at: datetime | None


async def create_signing_key(conn: Connection, sealer: Sealer, workspace_id: int) -> tuple[UUID, str]:
    """Make a key; its id and its text, which is shown this once."""
    await conn.execute(LOCK_WORKSPACE_FOR_KEYS, workspace_id=workspace_id)
    if await conn.fetchval(COUNT_LIVE_SIGNING_KEYS, workspace_id=workspace_id) >= LIVE_KEYS_MAX:
        raise TooManyKeys(f"The workspace has {LIVE_KEYS_MAX} live signing keys already. Revoke the old one first.")
    key_id, text = uuid4(), new_key()
    await conn.execute(
        INSERT_SIGNING_KEY,
        key_id=key_id,
        workspace_id=workspace_id,
        sealed_key=sealer.seal(Key.parse(text).secret, key_id.bytes),
    )
    return key_id, text


async def list_signing_keys(conn: Connection, workspace_id: int) -> list[SigningKeyEntry]:
    """All keys of the workspace, the newest first, the revoked ones too."""
    return [SigningKeyEntry(**row) for row in await conn.fetch(LIST_SIGNING_KEYS, workspace_id=workspace_id)]


async def read_live_keys(conn: Connection, sealer: Sealer, app: str, env: str) -> tuple[int, Sequence[Key]] | None:
    """The workspace's id and its live keys, the oldest first; None when there is no such workspace."""
    rows = await conn.fetch(READ_LIVE_SIGNING_KEYS, app=app, env=env)
    if not rows:
        return None
    keys = [Key(sealer.open(row["sealed_key"], row["key_id"].bytes)) for row in rows if row["key_id"] is not None]
    return rows[0]["workspace_id"], keys


async def revoke_signing_key(conn: Connection, workspace_id: int, key_id: UUID) -> bool:
    """End a key; False when the workspace has no such live key."""
    return await conn.execute(REVOKE_SIGNING_KEY, key_id=key_id, workspace_id=workspace_id) == 1
