"""What an app offers beyond its functions: where it serves, and how its calls may look."""

from __future__ import annotations

import msgspec

from protocol import limits
from protocol.manifest import Capabilities


class AppOffer(msgspec.Struct, frozen=True):
    """An app that was synced. `batch_max` invocations may travel in one call, whose body stays under `max_body_bytes`."""

    serve_url: str
    batch_max: int = 1
    max_body_bytes: int = limits.BODY_BYTES_MAX
    has_refs: bool = False
    has_alive: bool = False


class _Offered(msgspec.Struct, frozen=True):
    """The part of a stored manifest that is not about functions."""

    capabilities: Capabilities = Capabilities()
    max_body: int = limits.BODY_BYTES_MAX


def read_offer(serve_url: str, manifest: str) -> AppOffer:
    """The offer of a stored manifest."""
    offered = msgspec.json.decode(manifest, type=_Offered)
    capabilities = offered.capabilities
    return AppOffer(serve_url, capabilities.batch.max, offered.max_body, capabilities.refs, capabilities.alive)
