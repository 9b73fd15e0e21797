"""Real servers for tests of the SDK, each in a thread of this process, on a free port: uvicorn, hypercorn on asyncio and on Trio,
and the threaded WSGI server of werkzeug. Each is a context that gives the server's address and stops it in order.
"""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import hypercorn.asyncio
import hypercorn.trio
import trio
import uvicorn
from hypercorn.config import Config
from werkzeug.serving import make_server

STOP_SECONDS_MAX = 40.0


@contextmanager
def uvicorn_server(asgi: Any) -> Iterator[str]:
    listener = listening()
    server = uvicorn.Server(uvicorn.Config(asgi, log_level="warning", timeout_graceful_shutdown=10))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    until(lambda: server.started or not thread.is_alive())
    try:
        yield address(listener)
    finally:
        server.should_exit = True
        joined(thread)


@contextmanager
def hypercorn_asyncio_server(asgi: Any) -> Iterator[str]:
    listener = listening()
    url, config = address(listener), config_of(listener)
    stop = threading.Event()

    async def serve() -> None:
        async def stopped() -> None:
            while not stop.is_set():
                await asyncio.sleep(0.01)

        await hypercorn.asyncio.serve(asgi, config, shutdown_trigger=stopped)

    with in_thread(lambda: run_on_asyncio(serve()), stop):
        yield url


def run_on_asyncio(work: Coroutine[Any, Any, None]) -> None:
    # asyncio's own loop, also where trio-asyncio has put its policy in place.
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(work)


@contextmanager
def hypercorn_trio_server(asgi: Any) -> Iterator[str]:
    listener = listening()
    url, config = address(listener), config_of(listener)
    stop = threading.Event()

    async def serve() -> None:
        async def stopped() -> None:
            while not stop.is_set():
                await trio.sleep(0.01)

        await hypercorn.trio.serve(asgi, config, shutdown_trigger=stopped)

    with in_thread(lambda: trio.run(serve), stop):
        yield url


@contextmanager
def wsgi_server(wsgi: Any) -> Iterator[str]:
    server = make_server("127.0.0.1", 0, wsgi, threaded=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        joined(thread)
        server.server_close()


ASGI_SERVERS = {"uvicorn": uvicorn_server, "hypercorn-asyncio": hypercorn_asyncio_server, "hypercorn-trio": hypercorn_trio_server}


def listening() -> socket.socket:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(100)
    return listener


def address(listener: socket.socket) -> str:
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


def config_of(listener: socket.socket) -> Config:
    config = Config()
    # The server closes the descriptor; if the listener did too, it would close what has got its number since.
    config.bind = [f"fd://{listener.detach()}"]
    config.graceful_timeout = 10
    config.errorlog = None
    return config


@contextmanager
def in_thread(run: Callable[[], None], stop: threading.Event) -> Iterator[None]:
    errors: list[BaseException] = []

    def guarded() -> None:
        try:
            run()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=guarded, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        joined(thread)
        assert not errors, errors


def joined(thread: threading.Thread) -> None:
    thread.join(STOP_SECONDS_MAX)
    assert not thread.is_alive(), "the server did not stop"


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    ends_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends_at, "the condition was not reached"
        time.sleep(0.005)
