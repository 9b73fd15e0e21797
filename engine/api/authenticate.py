"""Who asks: an app by its signature, a sender by an event key, a person by an admin token. Nothing is parsed before.

A failure is always the same words, whatever the reason, and is counted per address. The workspace of everything that follows
comes from the credential, once.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, TypeVar

import structlog
import trio

from engine.api.failure_limiter import FailureLimiter
from engine.api.refusals import ApiRefused
from engine.api.replay_memory import ReplayMemory
from engine.api.services import Services
from engine.store.admin_tokens import ADMIN_TOKEN_PREFIX, AdminToken, admin_token_sha256, find_admin_token
from engine.store.event_keys import EVENT_KEY_PREFIX, EventKeyOwner, event_key_sha256, find_event_key
from engine.store.keyring import WorkspaceKeys
from protocol.manifest import Workspace
from protocol.names import split_workspace
from protocol.signing import Key, SignatureError, verify

log = structlog.get_logger(__name__)
T = TypeVar("T")

BEARER_CHARACTERS_MAX: Final = 200
# How long a token that was good is taken as good without asking the database: also the time until a revocation holds everywhere.
TOKEN_FRESH_SECONDS: Final = 5.0
TOKENS_REMEMBERED_MAX: Final = 1_000
_SINGLE_HEADERS: Final = frozenset(
    {b"webhook-id", b"webhook-timestamp", b"webhook-signature", b"durable-workspace", b"authorization"}
)


@dataclass(frozen=True, slots=True)
class Caller:
    """A program that speaks for one workspace. `keys` and `request_id` sign the answer; a bearer's answer is not signed."""

    workspace_id: int
    app: str
    env: str
    keys: tuple[Key, ...] = ()
    request_id: str = ""

    def require(self, workspace: Workspace) -> None:
        """Refuse a message that names another workspace than the credential."""
        if workspace.app != self.app or workspace.env != self.env:
            raise ApiRefused(
                "wrong_workspace",
                "The message names another workspace than its credential is for.",
                "Send `workspace` with the app and env of the key; durable-workspace must say the same.",
            )


@dataclass(frozen=True, slots=True)
class Person:
    """A person (or a script of one) with an admin token."""

    label: str

    @property
    def actor(self) -> str:
        """Who it was, for the audit log."""
        return f"token:{self.label}"


class Authenticator:
    """Checks credentials. `wall_clock` gives seconds since 1970, against which signatures are held."""

    def __init__(self, services: Services, wall_clock: Callable[[], float] = time.time) -> None:
        self._services = services
        self._wall_clock = wall_clock
        self._failures = FailureLimiter()
        self._replays = ReplayMemory()
        self._nobodys_key = Key(b"a key that signs nothing, of any length".ljust(40))
        self._tokens: OrderedDict[bytes, tuple[float, AdminToken]] = OrderedDict()
        self._event_keys: OrderedDict[bytes, tuple[float, EventKeyOwner]] = OrderedDict()

    async def machine(self, headers: dict[bytes, bytes], body: bytes, address: str) -> Caller:
        """The app that signed this request, or a refusal."""
        name = _text(headers, b"durable-workspace")
        split = split_workspace(name) if name is not None else None
        if split is None or split[0] == "*":
            raise self._fail(address, "bad_signature", "no_workspace")
        app, env = split
        if self._failures.is_over(address) and not self._services.keys.remembers(app, env):
            raise self._too_many()
        keys = await self._services.keys.live_keys(app, env)
        request_id = _text(headers, b"webhook-id")
        try:
            keys = await self._verified(keys, headers, body, address)
        except SignatureError as error:
            raise self._fail(address, "bad_signature", error.reason, workspace=name) from None
        assert request_id is not None
        if not self._replays.is_new(f"{app}/{env}", request_id):
            raise self._fail(address, "bad_signature", "replayed", workspace=name)
        return Caller(await self._services.keys.workspace_id(keys), app, env, keys.keys, request_id)

    async def event_sender(self, headers: dict[bytes, bytes], body: bytes, address: str) -> Caller:
        """The sender of events: with an event key as bearer, or an app with its signature."""
        if b"authorization" not in headers:
            return await self.machine(headers, body, address)
        hashed = self._bearer(headers, EVENT_KEY_PREFIX, event_key_sha256)
        owner = _remembered(self._event_keys, hashed)
        if owner is None and hashed is not None:
            self._require_patience(address, hashed in self._event_keys)
            owner = await self._services.database.read(find_event_key, hashed)
            if owner is not None:
                _remember(self._event_keys, hashed, owner)
        if owner is None:
            raise self._fail(address, "bad_token", "unknown_event_key")
        return Caller(owner.workspace_id, owner.app, owner.env)

    async def person(self, headers: dict[bytes, bytes], address: str) -> Person:
        """The person whose admin token this is, or a refusal."""
        hashed = self._bearer(headers, ADMIN_TOKEN_PREFIX, admin_token_sha256)
        token = _remembered(self._tokens, hashed)
        if token is None and hashed is not None:
            self._require_patience(address, hashed in self._tokens)
            token = await self._services.database.read(find_admin_token, hashed)
            if token is not None:
                _remember(self._tokens, hashed, token)
        if token is None or (token.is_dev and self._services.mode != "dev"):
            raise self._fail(address, "bad_token", "unknown_admin_token")
        return Person(token.label)

    async def authorize_change(self, person: Person, workspace: Workspace) -> None:
        """Every change by a person passes here before it is made: in `prod` this is where the second click will be asked for."""
        log.debug("change_by_person", actor=person.actor, workspace=str(workspace))

    async def _verified(self, keys: WorkspaceKeys, headers: dict[bytes, bytes], body: bytes, address: str) -> WorkspaceKeys:
        try:
            self._verify(keys, headers, body)
            return keys
        except SignatureError as error:
            if error.reason != "no_match" or self._failures.is_over(address):
                raise
        # The key may be newer than what is remembered.
        newer = await self._services.keys.live_keys(keys.app, keys.env, newer=True)
        self._verify(newer, headers, body)
        return newer

    def _verify(self, keys: WorkspaceKeys, headers: dict[bytes, bytes], body: bytes) -> None:
        verify(
            # An unknown workspace costs the same time as a known one.
            keys.keys or (self._nobodys_key,),
            _text(headers, b"webhook-id"),
            _text(headers, b"webhook-timestamp"),
            _text(headers, b"webhook-signature"),
            body,
            self._wall_clock(),
        )
        if not keys.keys:
            raise SignatureError("no_match", "The workspace has no keys.")

    def _bearer(self, headers: dict[bytes, bytes], prefix: str, hashed: Callable[[str], bytes]) -> bytes | None:
        scheme, _, token = (_text(headers, b"authorization") or "").partition(" ")
        if scheme.lower() != "bearer" or not token.startswith(prefix) or len(token) > BEARER_CHARACTERS_MAX:
            return None
        return hashed(token)

    def _require_patience(self, address: str, was_good: bool) -> None:
        if not was_good and self._failures.is_over(address):
            raise self._too_many()

    def _too_many(self) -> ApiRefused:
        return ApiRefused(
            "too_many_failures",
            "Too many requests with a bad credential.",
            "Wait for the time in retry-after, and check the key or token.",
            retry_after_seconds=self._failures.seconds_left,
        )

    def _fail(self, address: str, code: str, reason: str, workspace: str | None = None) -> ApiRefused:
        """The same words for every reason: telling a stranger what was wrong would only help a stranger."""
        self._failures.count(address)
        log.warning("authentication_failed", code=code, reason=reason, address=address, workspace=workspace)
        if code == "bad_signature":
            return ApiRefused(
                code,
                "The request is not signed with a key of its workspace, or not for now.",
                "Check DURABLE_SIGNING_KEY, DURABLE_ENV and the clock; the engine's log has the reason.",
            )
        return ApiRefused(code, "The token is missing, unknown or revoked.", "Send `authorization: Bearer …` with a live one.")


def single_headers(scope_headers: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """The headers that credentials are read from. One that comes twice could mean two things, so it means none."""
    found: dict[bytes, bytes] = {}
    repeated: set[bytes] = set()
    for name, value in scope_headers:
        lower = name.lower()
        if lower in _SINGLE_HEADERS:
            if lower in found:
                repeated.add(lower)
            found[lower] = value
    for name in repeated:
        # Kept, so that a repeated credential fails instead of counting as absent.
        found[name] = b""
    return found


def _text(headers: dict[bytes, bytes], name: bytes) -> str | None:
    value = headers.get(name)
    return None if value is None else value.decode("latin-1")


def _remembered(remembered: OrderedDict[bytes, tuple[float, T]], hashed: bytes | None) -> T | None:
    if hashed is None or hashed not in remembered:
        return None
    read_at, owner = remembered[hashed]
    return owner if trio.current_time() - read_at < TOKEN_FRESH_SECONDS else None


def _remember(remembered: OrderedDict[bytes, tuple[float, T]], hashed: bytes, owner: T) -> None:
    remembered[hashed] = (trio.current_time(), owner)
    remembered.move_to_end(hashed)
    if len(remembered) > TOKENS_REMEMBERED_MAX:
        remembered.popitem(last=False)
