"""How the engine logs: one line an event, for people at a terminal and as JSON elsewhere, with secrets taken out."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

# What looks like a key or a token of ours, or the password in a database URL.
_SECRET = re.compile(r"(whsec_[A-Za-z0-9+/=]{6,}|d(?:at|ek)_[A-Za-z0-9_-]{8,}|(?<=://)[^\s/@:]*:[^\s/@]*(?=@))")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


def configure_logs(mode: str) -> None:
    """Set structlog up once for the process, on standard error."""
    is_terminal = sys.stderr.isatty()
    renderer: Any = (
        structlog.dev.ConsoleRenderer(colors=is_terminal) if is_terminal or mode == "dev" else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            redact,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")


def redact(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> dict[str, Any]:
    """Take secrets and control characters out of every text of a log line."""
    return {key: _clean(value, keep_lines=key == "exception") for key, value in event.items()}


def _clean(value: Any, *, keep_lines: bool) -> Any:
    if not isinstance(value, str):
        return value
    text = _SECRET.sub("[secret]", value)
    return text if keep_lines else _CONTROL.sub(" ", text)
