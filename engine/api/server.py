"""The HTTP API as one Quart-Trio application, made from the tables of routes: authenticate, answer, encode, or refuse.

Every route gets its authentication from its row, so a route without any can not be added by forgetting it. It holds no state of
the engine's and starts no tasks.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from quart import Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException

from engine.api.authenticate import Authenticator, Caller, single_headers
from engine.api.health_routes import HEALTH_ROUTES
from engine.api.machine_routes import MACHINE_ROUTES
from engine.api.people_routes import PEOPLE_ROUTES
from engine.api.read_body import BodyMemory, read_body
from engine.api.refusals import Refused, refuse
from engine.api.routes import HealthRoute, MachineRoute, PeopleRequest, PeopleRoute, Route
from engine.api.services import Services
from engine.api.signed_answers import signature_headers
from protocol import messages
from protocol.limits import BODY_BYTES_MAX

ROUTES: tuple[Route, ...] = (*MACHINE_ROUTES, *PEOPLE_ROUTES, *HEALTH_ROUTES)

_COMMON_HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff"}


def create_api(services: Services) -> QuartTrio:
    """The application. Serve it with Hypercorn, or call it in tests."""
    app = QuartTrio("durable", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = BODY_BYTES_MAX
    authenticator = Authenticator(services)
    memory = BodyMemory()
    for route in ROUTES:
        app.add_url_rule(
            route.path,
            endpoint=f"{route.method} {route.path}",
            view_func=_view(route, services, authenticator, memory),
            methods=[route.method],
            provide_automatic_options=False,
        )
    app.register_error_handler(HTTPException, _refuse_http)
    app.register_error_handler(Exception, _refuse_other)
    return app


def _view(
    route: Route, services: Services, authenticator: Authenticator, memory: BodyMemory
) -> Callable[..., Awaitable[Response]]:
    match route:
        case MachineRoute():
            return _machine_view(route, services, authenticator, memory)
        case PeopleRoute():
            return _people_view(route, services, authenticator, memory)
        case HealthRoute():
            return _health_view(route, services)


def _machine_view(
    route: MachineRoute, services: Services, authenticator: Authenticator, memory: BodyMemory
) -> Callable[..., Awaitable[Response]]:
    authenticate = authenticator.machine if route.access == "apps" else authenticator.event_sender

    async def view() -> Response:
        caller: Caller | None = None
        taken_bytes = 0
        try:
            body, taken_bytes = await read_body(request, route.body_bytes_max, memory)
            caller = await authenticate(single_headers(request.scope["headers"]), body, _address())
            answer = await route.answer(services, caller, body)
            return _signed(200, messages.encode(answer), {}, caller)
        except Exception as error:
            refused = refuse(error, is_manifest_inside=route.path == "/v1/sync")
            return _signed(refused.status, refused.body, refused.headers, caller)
        finally:
            memory.give_back(taken_bytes)

    return view


def _people_view(
    route: PeopleRoute, services: Services, authenticator: Authenticator, memory: BodyMemory
) -> Callable[..., Awaitable[Response]]:
    async def view(**path: str) -> Response:
        taken_bytes = 0
        try:
            # Before the body: a stranger's is not even read.
            person = await authenticator.person(single_headers(request.scope["headers"]), _address())
            body, taken_bytes = await read_body(request, route.body_bytes_max, memory)
            asked = PeopleRequest(person, path, request.args.to_dict(), body, authenticator)
            return _response(200, msgspec.json.encode(await route.answer(services, asked)), {})
        except Exception as error:
            return _refusal(refuse(error))
        finally:
            memory.give_back(taken_bytes)

    return view


def _health_view(route: HealthRoute, services: Services) -> Callable[..., Awaitable[Response]]:
    async def view() -> Response:
        try:
            is_well, answer = await route.answer(services)
        except Exception as error:
            return _refusal(refuse(error))
        return _response(200 if is_well else 503, msgspec.json.encode(answer), {} if is_well else {"retry-after": "1"})

    return view


def _signed(status: int, body: bytes, headers: dict[str, str], caller: Caller | None) -> Response:
    """An answer, signed when the request was: a refusal too, so that nobody on the way can make one up."""
    if caller is not None and caller.keys:
        headers = {
            **headers,
            "durable-workspace": f"{caller.app}/{caller.env}",
            **signature_headers(caller.keys, caller.request_id, body),
        }
    return _response(status, body, headers)


def _refusal(refused: Refused) -> Response:
    return _response(refused.status, refused.body, refused.headers)


def _response(status: int, body: bytes, headers: dict[str, str]) -> Response:
    return Response(body, status, {**_COMMON_HEADERS, **headers}, content_type="application/json")


def _address() -> str:
    # The peer of the socket; what proxies write in headers could be anyone's words.
    client: Any = request.scope.get("client")
    return str(client[0]) if client else "local"


async def _refuse_http(error: HTTPException) -> Response:
    return _refusal(refuse(error))


async def _refuse_other(error: Exception) -> Response:
    return _refusal(refuse(error))
