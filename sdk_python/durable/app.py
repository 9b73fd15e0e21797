"""The app: the functions that it offers, and the ways in and out: `asgi()`, `wsgi()`, `send`, `start`.

Owns the list of functions, the two clients and the keeper of leases. Reads the environment only when something is served or sent.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from durable.alive import AliveKeeper
from durable.client import Client, SyncClient
from durable.deployment import read_deployment
from durable.durations import Duration
from durable.function import RETRIES_DEFAULT, STEP_TIMEOUT_SECONDS_DEFAULT, Function, Handler, define_function
from durable.keys import Settings, read_settings
from durable.outgoing import EventWords, events_message, start_message, sync_message
from durable.run_handle import RunHandle
from durable.triggers import Concurrency, Event
from durable.version import VERSION
from durable.wire import (
    PROTOCOL_VERSION,
    Backoff,
    Batch,
    Capabilities,
    EventAnswer,
    Manifest,
    Sdk,
    SyncAnswer,
)
from durable.wire_codec import decode_events_answer, decode_start_answer, decode_sync_answer

if TYPE_CHECKING:
    from durable.http_asgi import AsgiApp
    from durable.http_wsgi import WsgiApp

# Each invocation is some tasks here; a call with more of them would only answer later.
INVOCATIONS_PER_CALL_MAX: Final = 200
# What a call should have at most. Larger ones are taken too, up to BODY_BYTES_MAX: a single event or result may need it.
CALL_BYTES_MAX: Final = 4 << 20
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


class App:
    """An app and its durable functions.

    app = durable.App("shop")

    @app.function(trigger=durable.Event("user.created"))
    async def onboarding(event, step):
        user = await step.run("load-user", load_user, event.data["id"])
        await step.sleep("cooldown", "2d")
        await step.run("welcome", send_welcome, user)

    asgi = app.asgi()
    """

    def __init__(self, name: str) -> None:
        if not isinstance(name, str) or _NAME.fullmatch(name) is None:
            raise ValueError(f"The app name {name!r:.120} must be 1–63 of a-z, 0-9, `_`, `-`, beginning with a letter or digit.")
        self.name = name
        self.client = Client(self.settings)
        self.sync_client = SyncClient(self.settings)
        self.alive = AliveKeeper(self.settings)
        self._functions: dict[str, Function] = {}

    @property
    def functions(self) -> Mapping[str, Function]:
        """The functions by id."""
        return self._functions

    def function(
        self,
        *,
        trigger: Event | None = None,
        triggers: Sequence[Event] = (),
        id: str | None = None,
        name: str | None = None,
        retries: int = RETRIES_DEFAULT,
        backoff: Backoff | None = None,
        concurrency: Concurrency | Sequence[Concurrency] = (),
        step_timeout: Duration = STEP_TIMEOUT_SECONDS_DEFAULT,
    ) -> Callable[[Handler], Function]:
        """Make the function below a durable one. It may be `async def` (on asyncio or Trio, whatever serves) or `def`
        (in a thread of its own), and takes `(event, step)`.

        `id` (default: the function's name) is what the engine knows it by: keep it when you rename the function.
        `retries` counts the tries after the first, of each step and of the function itself. `step_timeout` is the
        longest that any step of it may ask for.
        """
        if (trigger is None) == (not triggers):
            raise ValueError('Give @app.function either `trigger=durable.Event("…")` or `triggers=[…]`.')

        def define(handler: Handler) -> Function:
            function = define_function(
                handler,
                triggers=trigger if trigger is not None else triggers,
                function_id=id,
                name=name,
                retries=retries,
                backoff=backoff,
                concurrency=concurrency,
                step_timeout=step_timeout,
                app=self,
            )
            if function.id in self._functions:
                raise ValueError(f"The app {self.name!r} has a function {function.id!r} already. Give this one an id of its own.")
            self._functions[function.id] = function
            return function

        return define

    # Serving.

    def asgi(self) -> "AsgiApp":
        """The app as an ASGI application, to be served at any path by uvicorn, hypercorn (asyncio or Trio) and others."""
        from durable.http_asgi import AsgiApp

        return AsgiApp(self)

    def wsgi(self) -> "WsgiApp":
        """The app as a WSGI application, for gunicorn, and for Flask and Django beside their own routes."""
        from durable.http_wsgi import WsgiApp

        return WsgiApp(self)

    # Sending, from async code on asyncio or Trio.

    async def send(self, name: str, data: Any = None, *, id: str | None = None) -> EventAnswer:
        """Send an event. When this returns it is never lost. The answer names the runs that it started.

        `id` deduplicates for 24 hours: the same event sent again is answered with `duplicate=True`.
        """
        return (await self.send_many([_event_words(name, data, id)]))[0]

    async def send_many(self, events: Sequence[EventWords]) -> list[EventAnswer]:
        """Send 1–1,000 events, `{"name": …, "data": …, "id"?: …}`, all or none."""
        body = events_message(self.settings().workspace, events)
        return decode_events_answer(await self.client.call("/v1/events", body, "events")).events

    async def start(self, function: Function | str, input: Any = None, *, id: str | None = None) -> RunHandle:
        """Start a run of a function without an event; its `event.data` is `input`. `id` deduplicates for 24 hours."""
        function_id, body = start_message(self.settings().workspace, function, input, id)
        answer = decode_start_answer(await self.client.call("/v1/start", body, "start"))
        return RunHandle(self, answer.run_id, function_id, is_duplicate=answer.duplicate)

    async def register(self, url: str) -> SyncAnswer:
        """Tell the engine the URL at which this app is served, where it should not have to find it."""
        body = sync_message(self.settings().workspace, url, self.manifest())
        return decode_sync_answer(await self.client.call("/v1/sync", body, "sync", method="PUT"))

    async def aclose(self) -> None:
        """Close the connections of this event loop. The app can be used again afterwards."""
        await self.client.close()

    # Sending, from plain code.

    def send_sync(self, name: str, data: Any = None, *, id: str | None = None) -> EventAnswer:
        """`send` for plain code."""
        return self.send_many_sync([_event_words(name, data, id)])[0]

    def send_many_sync(self, events: Sequence[EventWords]) -> list[EventAnswer]:
        """`send_many` for plain code."""
        body = events_message(self.settings().workspace, events)
        return decode_events_answer(self.sync_client.call("/v1/events", body, "events")).events

    def start_sync(self, function: Function | str, input: Any = None, *, id: str | None = None) -> RunHandle:
        """`start` for plain code; ask the handle with `result_sync`."""
        function_id, body = start_message(self.settings().workspace, function, input, id)
        answer = decode_start_answer(self.sync_client.call("/v1/start", body, "start"))
        return RunHandle(self, answer.run_id, function_id, is_duplicate=answer.duplicate)

    def register_sync(self, url: str) -> SyncAnswer:
        """`register` for plain code."""
        body = sync_message(self.settings().workspace, url, self.manifest())
        return decode_sync_answer(self.sync_client.call("/v1/sync", body, "sync", method="PUT"))

    def close(self) -> None:
        """Close the connections of plain code. The app can be used again afterwards."""
        self.sync_client.close()

    # What the environment and the functions say.

    def settings(self) -> Settings:
        """The environment's settings of now; ConfigurationError says what to set."""
        return read_settings(self.name)

    def manifest(self) -> Manifest:
        """What the app offers."""
        functions = list(self._functions.values())
        return Manifest(
            workspace=self.settings().workspace,
            sdk=Sdk("python", VERSION),
            protocol=[PROTOCOL_VERSION],
            capabilities=Capabilities(checkpoint=True, batch=Batch(INVOCATIONS_PER_CALL_MAX), refs=True, alive=True),
            deployment=read_deployment(functions),
            max_body=CALL_BYTES_MAX,
            functions=[function.config() for function in functions],
        )


def _event_words(name: str, data: Any, event_id: str | None) -> EventWords:
    return {"name": name, "data": data} if event_id is None else {"name": name, "data": data, "id": event_id}
