"""The serve URL of an app, taken apart once: where to connect, and what the request says. A URL that could not be written into a
request line unchanged is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import urlsplit

_VISIBLE = re.compile(r"[!-~]*")


class UrlRefused(ValueError):
    """The serve URL can not be called. The sentence says why; the app must give another."""

    code = "url_refused"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where connections lead. `host` is a name in ASCII or an address without brackets."""

    is_tls: bool
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class AppUrl:
    """`target` is path and query, `host_header` what belongs into `Host`."""

    origin: Origin
    target: str
    host_header: str


@lru_cache(maxsize=1024)
def parse_app_url(text: str) -> AppUrl:
    """Read a URL; UrlRefused when no request can be made of it."""
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
        if host is not None and not host.isascii():
            host = host.encode("idna").decode("ascii")
    except ValueError as error:
        raise UrlRefused(f"the app's URL can not be read: {error}") from None
    if parts.scheme not in ("http", "https") or not host:
        raise UrlRefused("the app's URL must begin with http:// or https:// and name a host")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    shown_host = f"[{host}]" if ":" in host else host
    if _VISIBLE.fullmatch(target + host) is None:
        raise UrlRefused("the app's URL has spaces or other characters that must be written as %20 and the like")
    is_tls = parts.scheme == "https"
    standard_port = 443 if is_tls else 80
    host_header = shown_host if port in (None, standard_port) else f"{shown_host}:{port}"
    return AppUrl(Origin(is_tls, host, port or standard_port), target, host_header)
