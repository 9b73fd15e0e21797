"""The HTTP of the fake engine: requests come to it here, and streamed replies of apps are cut into lines."""

import itertools
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from tests.sdk_python.fake_engine import FakeEngine


class Handler(BaseHTTPRequestHandler):
    engine: "FakeEngine"
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["content-length"]))
        try:
            status, headers, body = self.engine.answer(self.command, self.path, self.headers, raw)
        except Exception as error:
            self.engine.fault(f"{self.path}: {error!r}")
            raise
        if self.engine.disturb:
            status, headers, body = self.engine.disturb.pop(0)(status, headers, body)
        if status == 0:
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_PUT = do_POST

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


def lines_of(response: httpx.Response) -> Iterator[bytes]:
    rest = b""
    for chunk in itertools.chain(response.iter_raw(), [b""]):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from filter(None, lines)
    assert not rest, "the reply ends in the middle of a line"
