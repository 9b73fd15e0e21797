"""The HTTP API as one ASGI application, made from the tables of routes: Quart-Trio for people, plain ASGI for machines.

Every route gets its authentication from its row, so a route without any can not be added by forgetting it. It holds no state of
the engine's and starts no tasks.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, Scope
from quart import Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException

from engine.api.authenticate import Authenticator, single_headers
from engine.api.health_routes import HEALTH_ROUTES
from engine.api.machine_routes import MACHINE_ROUTES
from engine.api.machine_server import MachineServer, address_of
from engine.api.people_routes import PEOPLE_ROUTES
from engine.api.read_body import BodyMemory, read_body
from engine.api.refusals import Refused, refuse
from engine.api.routes import COMMON_HEADERS, HealthRoute, PeopleRequest, PeopleRoute, Route
from engine.api.services import Services
from protocol.limits import BODY_BYTES_MAX

ROUTES: tuple[Route, ...] = (*MACHINE_ROUTES, *PEOPLE_ROUTES, *HEALTH_ROUTES)


class Api(QuartTrio):
    """The application: requests for machine routes never reach Quart."""

    def __init__(self, machines: MachineServer) -> None:
        super().__init__("durable", static_folder=None)
        self._machines = machines

    def serves_machine(self, path: str) -> bool:
        """Whether the path is a machine route, whose connections are served without Hypercorn."""
        return self._machines.serves(path)

    async def asgi_app(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        if scope["type"] == "http" and self._machines.serves(scope["path"]):
            await self._machines(scope, receive, send)
        else:
            await super().asgi_app(scope, receive, send)


def create_api(services: Services) -> Api:
    """The application. Serve it with `serve_http`, or call it in tests."""
    authenticator = Authenticator(services)
    memory = BodyMemory()
    app = Api(MachineServer(MACHINE_ROUTES, services, authenticator, memory))
    app.config["MAX_CONTENT_LENGTH"] = BODY_BYTES_MAX
    for route in (*PEOPLE_ROUTES, *HEALTH_ROUTES):
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
    route: PeopleRoute | HealthRoute, services: Services, authenticator: Authenticator, memory: BodyMemory
) -> Callable[..., Awaitable[Response]]:
    match route:
        case PeopleRoute():
            return _people_view(route, services, authenticator, memory)
        case HealthRoute():
            return _health_view(route, services)


def _people_view(
    route: PeopleRoute, services: Services, authenticator: Authenticator, memory: BodyMemory
) -> Callable[..., Awaitable[Response]]:
    async def view(**path: str) -> Response:
        taken_bytes = 0
        try:
            # Before the body: a stranger's is not even read.
            person = await authenticator.person(single_headers(request.scope["headers"]), address_of(request.scope))
            body, taken_bytes = await read_body(request.content_length, request.body, route.body_bytes_max, memory)
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


def _refusal(refused: Refused) -> Response:
    return _response(refused.status, refused.body, refused.headers)


def _response(status: int, body: bytes, headers: dict[str, str]) -> Response:
    return Response(body, status, {**COMMON_HEADERS, **headers}, content_type="application/json")


async def _refuse_http(error: HTTPException) -> Response:
    return _refusal(refuse(error))


async def _refuse_other(error: Exception) -> Response:
    return _refusal(refuse(error))
