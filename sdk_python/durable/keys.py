"""What the environment says: the engine's address, the workspace and its signing keys.

Read when first needed, so that importing an app needs no configuration; read again each time, so that a `dev.key`
that `durable dev` writes later is found. Never logs a key.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from durable.errors import ConfigurationError
from durable.signing import Key, KeyRefused
from durable.wire import Workspace

URL_DEFAULT: Final = "http://127.0.0.1:8288"
_ENVIRONMENT = re.compile(r"[a-z][a-z0-9-]{0,31}")


class DevKeyMissing(ConfigurationError):
    """`durable dev` has not written its key yet. Start it; the app finds the key without a restart."""

    code: str = "dev_key_missing"


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the engine is, who we are, and the keys (the first signs lines; all sign messages and verify)."""

    url: str
    workspace: Workspace
    keys: tuple[Key, ...] = field(repr=False)


def read_settings(app_name: str, environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings of now, or ConfigurationError with a sentence that says what to set."""
    env = environ.get("DURABLE_ENV", "")
    if not env:
        raise ConfigurationError(
            "DURABLE_ENV is not set. Set it to the name of the environment that this process runs in: DURABLE_ENV=dev beside "
            "`durable dev`; elsewhere for example DURABLE_ENV=prod, with DURABLE_SIGNING_KEY=whsec_… of that environment."
        )
    if _ENVIRONMENT.fullmatch(env) is None:
        raise ConfigurationError(f"DURABLE_ENV is {env[:80]!r}; it must be 1–32 of a-z, 0-9, `-`, beginning with a letter.")
    return Settings(_read_url(environ), Workspace(app_name, env), _read_keys(env, environ))


def _read_url(environ: Mapping[str, str]) -> str:
    url = environ.get("DURABLE_URL", "") or URL_DEFAULT
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_good = False
    if not is_good or parts.query or parts.fragment or not url.isprintable() or " " in url:
        # The URL may hold a password: it is not repeated.
        raise ConfigurationError(
            f"DURABLE_URL must be the engine's address, such as {URL_DEFAULT}; what it holds is no such URL."
        )
    return url.rstrip("/")


def _read_keys(env: str, environ: Mapping[str, str]) -> tuple[Key, ...]:
    text = environ.get("DURABLE_SIGNING_KEY", "").strip()
    if text:
        return _parse_keys(text, "DURABLE_SIGNING_KEY")
    if env != "dev":
        raise ConfigurationError(
            f"DURABLE_SIGNING_KEY is not set. Set it to the signing key of this app in the environment {env!r} (whsec_…), which "
            "`durable key create` has made."
        )
    path = Path(environ.get("DURABLE_HOME", "") or "~/.durable").expanduser() / "dev.key"
    try:
        return _parse_keys(path.read_text("utf-8").strip(), str(path))
    except FileNotFoundError:
        raise DevKeyMissing(
            f"There is no signing key yet: {path} does not exist. Start `durable dev` first, which writes it (with another "
            "DURABLE_HOME, set that here too), or set DURABLE_SIGNING_KEY."
        ) from None
    except (OSError, UnicodeDecodeError) as fault:
        raise ConfigurationError(
            f"The signing key {path} can not be read: {fault}. Mend its rights, or set DURABLE_HOME."
        ) from None


@lru_cache(maxsize=16)
def _parse_keys(text: str, where: str) -> tuple[Key, ...]:
    """One key, or several with blanks or commas between while they rotate."""
    try:
        keys = tuple(Key.parse(part) for part in re.split(r"[\s,]+", text) if part)
    except KeyRefused as refused:
        raise ConfigurationError(f"{where} holds no signing key. {refused}") from None
    if not keys or len(keys) > 4:
        raise ConfigurationError(f"{where} holds {len(keys)} signing keys; one is needed, and two to four while they rotate.")
    return keys
