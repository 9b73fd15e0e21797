"""Serves the scenario app over WSGI with a thread for each request, as gunicorn's threads do. `python -m … PORT`."""

from __future__ import annotations

import sys
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from tests.scenarios.scenario_app import wsgi


class ThreadingServer(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 128


class QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


if __name__ == "__main__":
    with make_server("127.0.0.1", int(sys.argv[1]), wsgi, ThreadingServer, QuietHandler) as server:
        server.serve_forever()
