"""Seals secrets before they are stored (AES-256-GCM), and opens them again. It never stores or logs a secret itself.

The sealing key is derived from DURABLE_SECRET_KEY, from the file that DURABLE_SECRET_KEY_FILE names, or, for an embedded
database, from the file `secret.key` in DURABLE_HOME. What is sealed is bound to the row that holds it, so sealed texts can not be
swapped.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from engine.store.private_file import PrivateFileRefused, read_or_create_private_file

SECRET_CHARACTERS_MIN = 32
SECRET_FILE = "secret.key"
_NONCE_BYTES = 12
# In front of each sealed text: what it was sealed with, for the day when there is a second way.
_VERSION = b"\x01"


class SecretKeyRefused(Exception):
    """There is no usable secret key. The operator must set one; the text says how."""

    code = "secret_key_refused"


class SealBroken(Exception):
    """A sealed text can not be opened: the secret key is another one than when it was sealed. Set the former key."""

    code = "seal_broken"


class Sealer:
    """Seals and opens with one secret key."""

    def __init__(self, secret: str) -> None:
        if len(secret) < SECRET_CHARACTERS_MIN:
            raise SecretKeyRefused(
                f"The secret key has {len(secret)} characters; it needs {SECRET_CHARACTERS_MIN}. "
                "Make one with: openssl rand -base64 32"
            )
        derived = HKDF(SHA256(), length=32, salt=None, info=b"durable sealing 1").derive(secret.encode())
        self._cipher = AESGCM(derived)

    def seal(self, secret: bytes, row_id: bytes) -> bytes:
        """The sealed form of `secret`, to be stored in the row `row_id`."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return _VERSION + nonce + self._cipher.encrypt(nonce, secret, row_id)

    def open(self, sealed: bytes, row_id: bytes) -> bytes:
        """The secret that was sealed for the row `row_id`; SealBroken if that was done with another key or for another row."""
        version, nonce, rest = sealed[:1], sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :]
        try:
            if version != _VERSION:
                raise InvalidTag
            return self._cipher.decrypt(nonce, rest, row_id)
        except (InvalidTag, ValueError):
            raise SealBroken(
                "A stored secret can not be opened with this secret key. "
                "Set DURABLE_SECRET_KEY to the value that it had when the secret was stored."
            ) from None


def open_sealer(environment: Mapping[str, str], *, home: Path | None) -> Sealer:
    """The sealer of this engine. `home` is DURABLE_HOME with an embedded database, None with one of the operator's own."""
    text = environment.get("DURABLE_SECRET_KEY")
    named_file = environment.get("DURABLE_SECRET_KEY_FILE")
    if text and named_file:
        raise SecretKeyRefused("DURABLE_SECRET_KEY and DURABLE_SECRET_KEY_FILE are both set. Set one of them.")
    if text:
        return Sealer(text.strip())
    if named_file:
        return Sealer(_read_named_file(Path(named_file)))
    if home is not None:
        try:
            return Sealer(read_or_create_private_file(home / SECRET_FILE, lambda: secrets.token_urlsafe(32)))
        except PrivateFileRefused as refused:
            raise SecretKeyRefused(str(refused)) from refused
    raise SecretKeyRefused(
        "No secret key is set, and without one the signing keys in the database could not be sealed. Set DURABLE_SECRET_KEY "
        "(or DURABLE_SECRET_KEY_FILE) to the same value for every engine on this database. Make one with: openssl rand -base64 32"
    )


def _read_named_file(path: Path) -> str:
    # Not as strict as our own files: orchestrators mount secrets with modes and links of their own.
    try:
        return path.read_bytes()[:4096].decode("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SecretKeyRefused(f"The file {os.fspath(path)} of DURABLE_SECRET_KEY_FILE can not be read: {error}.") from error
