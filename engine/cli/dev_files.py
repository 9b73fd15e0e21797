"""The two secrets of `durable dev`, in DURABLE_HOME: `dev.key` signs between engine and apps, `dev.token` is the person's.

Made at the first start and kept. They are good for the environment `dev` and for an engine in dev mode, nowhere else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from engine.store.admin_tokens import ADMIN_TOKEN_PREFIX, new_admin_token
from engine.store.postgres_home import durable_home
from engine.store.private_file import PrivateFileRefused, read_or_create_private_file, read_private_file
from protocol.signing import Key, KeyRefused, new_key

DEV_KEY_FILE: Final = "dev.key"
DEV_TOKEN_FILE: Final = "dev.token"


def read_or_create_dev_key(home: Path | None = None) -> Key:
    """The signing key of the environment `dev`. PrivateFileRefused says what is wrong with the file."""
    path = (home or durable_home()) / DEV_KEY_FILE
    text = read_or_create_private_file(path, new_key)
    try:
        return Key.parse(text)
    except KeyRefused as refused:
        raise PrivateFileRefused(f"{path} holds no signing key: {refused} Remove it, and a new one is made.") from None


def read_or_create_dev_token(home: Path | None = None) -> str:
    """The admin token that an engine in dev mode takes. PrivateFileRefused says what is wrong with the file."""
    path = (home or durable_home()) / DEV_TOKEN_FILE
    return _checked(path, read_or_create_private_file(path, new_admin_token))


def read_dev_token(home: Path | None = None) -> str | None:
    """The token, if `durable dev` ever ran here."""
    path = (home or durable_home()) / DEV_TOKEN_FILE
    text = read_private_file(path)
    return None if text is None else _checked(path, text)


def _checked(path: Path, text: str) -> str:
    if not text.startswith(ADMIN_TOKEN_PREFIX) or len(text) < 40:
        raise PrivateFileRefused(f"{path} holds no admin token. Remove it, and a new one is made.")
    return text
