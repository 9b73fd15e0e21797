"""The name of the deployed code: DURABLE_DEPLOYMENT, or a hash of the sources of the modules that define functions.

It tells the engine to read the manifest again, and the trace which code ran. A helper module that defines no
function does not count; set DURABLE_DEPLOYMENT (a commit id, say) where that matters.
"""

import hashlib
import inspect
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from durable.errors import ConfigurationError
from durable.function import Function, Handler
from durable.version import VERSION

DEPLOYMENT_CHARACTERS_MAX = 256


def read_deployment(functions: Iterable[Function], environ: Mapping[str, str] = os.environ) -> str:
    """The deployment of these functions."""
    given = environ.get("DURABLE_DEPLOYMENT", "")
    if len(given) > DEPLOYMENT_CHARACTERS_MAX:
        raise ConfigurationError(f"DURABLE_DEPLOYMENT has {len(given)} characters; {DEPLOYMENT_CHARACTERS_MAX} are allowed.")
    return given or _hash_sources(functions)


def _hash_sources(functions: Iterable[Function]) -> str:
    hashed = hashlib.sha256(VERSION.encode())
    for name, content in sorted({_source_of(function.handler) for function in functions}):
        hashed.update(f"\n{name} {len(content)}\n".encode("utf-8", "surrogatepass"))
        hashed.update(content)
    return hashed.hexdigest()[:32]


def _source_of(handler: Handler) -> tuple[str, bytes]:
    """The module of a handler and its file's bytes; without a file (a notebook, a zip) what the code was compiled to."""
    while hasattr(handler, "func") and hasattr(handler, "keywords"):
        handler = handler.func
    handler = inspect.unwrap(handler)
    module = getattr(handler, "__module__", "") or ""
    try:
        return module, Path(inspect.getfile(handler)).read_bytes()
    except (OSError, TypeError):
        code = getattr(handler, "__code__", None)
        return f"{module}.{getattr(handler, '__qualname__', '')}", code.co_code if code is not None else b""
