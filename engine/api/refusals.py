"""Refusals: the one table from code to HTTP status, and the JSON that every refusal is. Nothing else in api/ picks a 4xx or 5xx.

A refusal says what, where and how to mend it. What is not in the table is a fault of the engine: 500, with a reference to its
log.
"""

from __future__ import annotations

import secrets
from typing import Final

import structlog
from werkzeug.exceptions import HTTPException

from engine.store.cursor import CursorRefused
from engine.store.database import DatabaseUnavailable, TransactionConflict
from engine.store.group_writer import WriterOverloaded
from engine.store.sealing import SealBroken
from engine.store.signing_keys import TooManyKeys
from engine.store.sync_app import SyncRefused
from protocol import messages
from protocol.refused import MessageRefused
from protocol.requests import Refusal
from protocol.strict_json import JsonRefused

log = structlog.get_logger(__name__)

STATUS_OF_CODE: Final[dict[str, int]] = {
    # The body or the address of the request is not what the route takes.
    "empty_json": 400,
    "byte_order_mark": 400,
    "invalid_utf8": 400,
    "invalid_json": 400,
    "trailing_text": 400,
    "duplicate_key": 400,
    "not_finite": 400,
    "number_overflow": 400,
    "integer_range": 400,
    "null_character": 400,
    "lone_surrogate": 400,
    "too_deep": 400,
    "wrong_type": 400,
    "unknown_op": 400,
    "missing_field": 400,
    "bad_field": 400,
    "bad_name": 400,
    "reserved_name": 400,
    "out_of_range": 400,
    "too_many": 400,
    "too_few": 400,
    "too_large": 400,
    "misplaced_op": 400,
    "duplicate_run": 400,
    "duplicate_function": 400,
    "bad_parameter": 400,
    "bad_cursor": 400,
    "bad_request": 400,
    # The manifest can not be used.
    "no_common_protocol": 400,
    "invalid_expression": 400,
    "duplicate_limit": 400,
    # Who asks, and for what.
    "bad_signature": 401,
    "wrong_workspace": 401,
    "bad_token": 401,
    "not_found": 404,
    "workspace_not_found": 404,
    "run_not_found": 404,
    "event_not_found": 404,
    "function_not_found": 404,
    "key_not_found": 404,
    "unknown_ref": 404,
    "method_not_allowed": 405,
    "body_timeout": 408,
    "already_ended": 409,
    "function_removed": 409,
    "too_many_keys": 409,
    "body_too_large": 413,
    # Try again later.
    "too_many_failures": 429,
    "overloaded": 429,
    "database_unavailable": 503,
    "commit_unknown": 503,
    "transaction_conflict": 503,
    "write_pending": 503,
    "body_memory_full": 503,
    # The operator must act.
    "seal_broken": 500,
    "internal_error": 500,
}
RETRY_AFTER_SECONDS: Final[dict[int, int]] = {429: 1, 503: 1}

_CODE_OF_HTTP_STATUS: Final[dict[int, str]] = {
    404: "not_found",
    405: "method_not_allowed",
    408: "body_timeout",
    413: "body_too_large",
}


class ApiRefused(Exception):
    """The request is answered with the status of `code`. The sender must change what the message says."""

    def __init__(self, code: str, message: str, hint: str | None = None, *, retry_after_seconds: int | None = None) -> None:
        super().__init__(message)
        self.refusal = Refusal(code, message, hint)
        self.retry_after_seconds = retry_after_seconds


class Refused:
    """A refusal as it is sent."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, refusal: Refusal, retry_after_seconds: int | None = None) -> None:
        self.status = STATUS_OF_CODE[refusal.code]
        self.body = messages.encode(refusal)
        self.headers: dict[str, str] = {}
        if (seconds := retry_after_seconds or RETRY_AFTER_SECONDS.get(self.status)) is not None:
            self.headers["retry-after"] = str(seconds)
        if self.status == 401:
            self.headers["www-authenticate"] = "Bearer"


def refuse(error: Exception, *, is_manifest_inside: bool = False) -> Refused:
    """The refusal that an exception means; for one that means none it is logged, and the sender gets a reference."""
    match error:
        case ApiRefused():
            return Refused(error.refusal, error.retry_after_seconds)
        case JsonRefused() | MessageRefused():
            return Refused(Refusal(error.code, error.message, "Nothing of the message was used.", error.place or None))
        case SyncRefused():
            place = f"/manifest{error.place}" if is_manifest_inside else error.place
            return Refused(Refusal(error.code, error.message, error.hint, place or None))
        case WriterOverloaded():
            return Refused(Refusal(error.code, str(error), "Send it again after the time in retry-after."))
        case DatabaseUnavailable() | TransactionConflict():
            log.warning("request_without_database", error=str(error))
            return Refused(
                Refusal(error.code, "The database can not be used at the moment.", "Send it again after the time in retry-after.")
            )
        case CursorRefused():
            return Refused(Refusal(error.code, str(error), "A cursor is good for the list and the filters that it came with."))
        case TooManyKeys():
            return Refused(Refusal(error.code, str(error), "GET …/keys lists them; no key was made."))
        case SealBroken():
            log.error("seal_broken", error=str(error))
            return Refused(
                Refusal(error.code, "A stored key can not be opened.", "Ask the operator: the secret key was changed.")
            )
        case HTTPException():
            return _refuse_http(error)
        case _:
            return _refuse_unexpected(error)


def _refuse_http(error: HTTPException) -> Refused:
    status = error.code or 500
    code = _CODE_OF_HTTP_STATUS.get(status, "bad_request" if status < 500 else "internal_error")
    words = {
        "not_found": ("There is nothing at this address.", "Check the path; GET /v1/apps lists the workspaces."),
        "method_not_allowed": ("This address does not take this method.", "The header `allow` says which it takes."),
        "body_timeout": ("The body did not come in time.", "Send it again."),
        "body_too_large": ("The body is larger than this address takes.", "Send it in smaller parts."),
    }
    message, hint = words.get(code, (f"The request can not be read ({status}).", "Send it as HTTP/1.1 with a JSON body."))
    refused = Refused(Refusal(code, message, hint))
    allowed = getattr(error, "valid_methods", None)
    if allowed:
        refused.headers["allow"] = ", ".join(sorted(allowed))
    return refused


def _refuse_unexpected(error: Exception) -> Refused:
    # Random, not a hash of the fault: it ties one answer to one line of the log and tells a stranger nothing.
    reference = secrets.token_hex(8)
    log.error("request_failed", reference=reference, error=repr(error), exc_info=error)
    return Refused(
        Refusal(
            "internal_error",
            f"The engine failed while it answered (reference {reference}).",
            "It is the engine's fault, not the message's. Its log has the reference.",
        )
    )
