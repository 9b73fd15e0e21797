"""Admin tokens: bearer texts (`dat_…`) of people, good for every workspace. Stored as their SHA-256, shown once, revocable.

A token of `durable dev` is marked, so that an engine in earnest refuses it.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256

import msgspec

from engine.store.sql import Connection, Sql

ADMIN_TOKEN_PREFIX = "dat_"

INSERT_ADMIN_TOKEN = Sql(
    "insert_admin_token",
    """
INSERT INTO admin_token (token_sha256, label, is_dev) VALUES ($token_sha256, $label, $is_dev)
ON CONFLICT (token_sha256) DO NOTHING""",
)
LIST_ADMIN_TOKENS = Sql(
    "list_admin_tokens",
    """
SELECT encode(token_sha256, 'hex') AS token_id, label, is_dev, created_at, revoked_at
  FROM admin_token ORDER BY created_at DESC, token_sha256""",
)
FIND_ADMIN_TOKEN = Sql(
    "find_admin_token",
    "SELECT label, is_dev FROM admin_token WHERE token_sha256 = $token_sha256 AND revoked_at IS NULL",
)
REVOKE_ADMIN_TOKEN = Sql(
    "revoke_admin_token",
    "UPDATE admin_token SET revoked_at = now() WHERE token_sha256 = $token_sha256 AND revoked_at IS NULL",
)
HAS_ADMIN_TOKEN = Sql("has_admin_token", "SELECT EXISTS (SELECT 1 FROM admin_token WHERE NOT is_dev AND revoked_at IS NULL)")


class AdminTokenEntry(msgspec.Struct, frozen=True):
    """A token in a list. `token_id` is the hash of its text: it names the token and opens nothing."""

    token_id: str
    label: str
    is_dev: bool
    created_at: datetime
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True)
class AdminToken:
    """Who shows the token, by its label."""

    label: str
    is_dev: bool


async def create_admin_token(conn: Connection, label: str) -> tuple[str, str]:
    """Make a token; its id and its text, which is shown this once."""
    text = new_admin_token()
    token_sha256 = admin_token_sha256(text)
    await conn.execute(INSERT_ADMIN_TOKEN, token_sha256=token_sha256, label=label, is_dev=False)
    return token_sha256.hex(), text


async def register_dev_token(conn: Connection, text: str) -> None:
    """Let the token of the file `dev.token` in; nothing changes when it is in already."""
    await conn.execute(INSERT_ADMIN_TOKEN, token_sha256=admin_token_sha256(text), label="dev", is_dev=True)


async def list_admin_tokens(conn: Connection) -> list[AdminTokenEntry]:
    """All tokens, the newest first, the revoked ones too."""
    return [AdminTokenEntry(**row) for row in await conn.fetch(LIST_ADMIN_TOKENS)]


async def find_admin_token(conn: Connection, token_sha256: bytes) -> AdminToken | None:
    """The live token with this hash. The search is by hash, so its time says nothing about the text."""
    row = await conn.fetchrow(FIND_ADMIN_TOKEN, token_sha256=token_sha256)
    return None if row is None else AdminToken(**row)


async def revoke_admin_token(conn: Connection, token_sha256: bytes) -> bool:
    """End a token; False when there is no such live one."""
    return await conn.execute(REVOKE_ADMIN_TOKEN, token_sha256=token_sha256) == 1


async def has_admin_token(conn: Connection) -> bool:
    """Whether anybody could come in: an engine in earnest does not start without a token."""
    found: bool = await conn.fetchval(HAS_ADMIN_TOKEN)
    return found


def new_admin_token() -> str:
    """A fresh token of 256 random bits."""
    return ADMIN_TOKEN_PREFIX + secrets.token_urlsafe(32)


def admin_token_sha256(text: str) -> bytes:
    return sha256(text.encode()).digest()
