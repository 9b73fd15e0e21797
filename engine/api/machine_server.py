"""Serves the machine routes as plain ASGI, in front of Quart: read the body, authenticate, answer, sign, send.

These routes carry every run, and a request through Quart costs more than all that they do. What they are is in their rows; this
file gives each the same limits, refusals and headers. It starts no tasks but the one that notices a client that has gone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from typing import TypeAlias, TypeVar

import trio
from hypercorn.typing import (
    ASGIReceiveCallable,
    ASGISendCallable,
    HTTPResponseBodyEvent,
    HTTPResponseStartEvent,
    HTTPScope,
    WebsocketScope,
)
from werkzeug.exceptions import MethodNotAllowed

from engine.api.authenticate import Authenticator, Caller, single_headers
from engine.api.read_body import BodyMemory, read_body
from engine.api.refusals import refuse
from engine.api.routes import COMMON_HEADERS, MachineRoute
from engine.api.services import Services
from engine.api.signed_answers import signature_headers
from protocol import messages

T = TypeVar("T")
Header: TypeAlias = tuple[bytes, bytes]

_COMMON: tuple[Header, ...] = (
    (b"content-type", b"application/json"),
    *((name.encode(), value.encode()) for name, value in COMMON_HEADERS.items()),
)


class ClientGone(Exception):
    """The client hung up. There is nobody to answer."""


class MachineServer:
    """The machine routes. `serves(path)` says whether a path is one of them."""

    def __init__(
        self, routes: Iterable[MachineRoute], services: Services, authenticator: Authenticator, memory: BodyMemory
    ) -> None:
        self._routes = {route.path: route for route in routes}
        self._services = services
        self._authenticator = authenticator
        self._memory = memory

    def serves(self, path: str) -> bool:
        return path in self._routes

    async def __call__(self, scope: HTTPScope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """One request, as ASGI has it."""
        parts = BodyParts(receive)
        try:
            status, body, headers = await self._answer(scope, parts, receive)
        except ClientGone:
            return
        start: HTTPResponseStartEvent = {"type": "http.response.start", "status": status, "headers": headers}
        if parts.are_whole:
            await _send(send, start, body)
            return
        # Refused in the middle of its body. The rest is read, or the server could not get its end of the exchange done.
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_wait_gone, receive)
            await _send(send, start, body)
            nursery.cancel_scope.cancel()

    async def _answer(self, scope: HTTPScope, parts: BodyParts, receive: ASGIReceiveCallable) -> tuple[int, bytes, list[Header]]:
        route = self._routes[scope["path"]]
        caller: Caller | None = None
        taken_bytes = 0
        try:
            if scope["method"] != route.method:
                raise MethodNotAllowed([route.method])
            body, taken_bytes = await read_body(_announced_bytes(scope), parts, route.body_bytes_max, self._memory)
            authenticate = self._authenticator.machine if route.access == "apps" else self._authenticator.event_sender
            caller = await authenticate(single_headers(scope["headers"]), body, address_of(scope))
            asked = route.answer(self._services, caller, body)
            answer = messages.encode(await (_unless_gone(asked, receive) if route.is_long_poll else asked))
            return 200, answer, _headers(answer, {}, caller)
        except ClientGone:
            raise
        except Exception as error:
            refused = refuse(error, is_manifest_inside=route.path == "/v1/sync")
            return refused.status, refused.body, _headers(refused.body, refused.headers, caller)
        finally:
            self._memory.give_back(taken_bytes)


class BodyParts:
    """The parts of a body, as they come."""

    def __init__(self, receive: ASGIReceiveCallable) -> None:
        self._receive = receive
        self.are_whole = False

    def __aiter__(self) -> BodyParts:
        return self

    async def __anext__(self) -> bytes:
        if self.are_whole:
            raise StopAsyncIteration
        message = await self._receive()
        if message["type"] != "http.request":
            raise ClientGone
        self.are_whole = not message.get("more_body", False)
        return message.get("body", b"")


def address_of(scope: HTTPScope | WebsocketScope) -> str:
    """The peer of the socket; what proxies write in headers could be anyone's words."""
    client = scope.get("client")
    return str(client[0]) if client else "local"


def _announced_bytes(scope: HTTPScope) -> int | None:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value) if value.isdigit() else None
    return None


def _headers(body: bytes, refusal_headers: dict[str, str], caller: Caller | None) -> list[Header]:
    """The headers of an answer, signed when the request was: a refusal too, so that nobody on the way can make one up."""
    headers = [*_COMMON, (b"content-length", b"%d" % len(body))]
    headers += [(name.encode(), value.encode()) for name, value in refusal_headers.items()]
    if caller is not None and caller.keys:
        headers.append((b"durable-workspace", f"{caller.app}/{caller.env}".encode()))
        headers += [
            (name.encode(), value.encode()) for name, value in signature_headers(caller.keys, caller.request_id, body).items()
        ]
    return headers


async def _send(send: ASGISendCallable, start: HTTPResponseStartEvent, body: bytes) -> None:
    await send(start)
    rest: HTTPResponseBodyEvent = {"type": "http.response.body", "body": body, "more_body": False}
    await send(rest)


async def _unless_gone(asked: Awaitable[T], receive: ASGIReceiveCallable) -> T:
    """What was asked; ClientGone as soon as nobody waits for it any more."""
    answers: list[T] = []
    failures: list[Exception] = []

    async def answer() -> None:
        try:
            answers.append(await asked)
        except Exception as error:
            failures.append(error)
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer)
        await _wait_gone(receive)
        nursery.cancel_scope.cancel()
    if failures:
        raise failures[0]
    if not answers:
        raise ClientGone
    return answers[0]


async def _wait_gone(receive: ASGIReceiveCallable) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
