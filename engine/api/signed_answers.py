"""Answers to signed requests: signed with every live key of the workspace, and bound to the one request by their id."""

from __future__ import annotations

import time
from collections.abc import Sequence

from protocol.signing import Key, reply_id, sign


def signature_headers(keys: Sequence[Key], request_id: str, body: bytes) -> dict[str, str]:
    """The headers that sign `body` as the answer to the request `request_id`."""
    timestamp = int(time.time())
    message_id = reply_id(request_id)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": sign(keys, message_id, timestamp, body),
    }
