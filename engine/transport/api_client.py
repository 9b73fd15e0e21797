"""A small client of the engine's API for people's commands: one request, one answer or one clear error. Synchronous.

It follows no redirect and uses no proxy from the environment, so the token goes to the address that was named and nowhere else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote

import httpx

CONNECT_SECONDS_MAX: Final = 5.0
# The longest wait that the API gives, and some.
ANSWER_SECONDS_MAX: Final = 45.0


class EngineUnreachable(Exception):
    """No engine answers at the address. Start one, or name another address."""

    code = "engine_unreachable"


class AnswerRefused(Exception):
    """The engine refused; `code` and the words say why and how to mend it."""

    def __init__(self, status: int, code: str, message: str, hint: str | None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.hint = hint


@dataclass(frozen=True, slots=True)
class ApiAnswer:
    """A 2xx: its JSON, and the text as it came, in which payloads are byte for byte what they were."""

    json: Any
    text: str


class ApiClient:
    """Speaks to one engine with one token. Use it as a context."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url.rstrip("/")
        self._http = httpx.Client(
            headers={"authorization": f"Bearer {token}"},
            timeout=httpx.Timeout(ANSWER_SECONDS_MAX, connect=CONNECT_SECONDS_MAX),
            follow_redirects=False,
            trust_env=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._http.close()

    def get(self, path: str, query: Mapping[str, str | int | None] | None = None) -> ApiAnswer:
        """Ask. Parameters that are None are left out."""
        return self._ask("GET", path, query=query)

    def post(self, path: str, body: bytes = b"") -> ApiAnswer:
        """Change something; `body` is JSON."""
        return self._ask("POST", path, body=body)

    def delete(self, path: str) -> ApiAnswer:
        """End something."""
        return self._ask("DELETE", path)

    def _ask(
        self, method: str, path: str, *, query: Mapping[str, str | int | None] | None = None, body: bytes = b""
    ) -> ApiAnswer:
        given = {name: value for name, value in (query or {}).items() if value is not None}
        try:
            response = self._http.request(
                method, self.url + path, params=given, content=body, headers={"content-type": "application/json"}
            )
        except httpx.TimeoutException as error:
            raise EngineUnreachable(f"The engine at {self.url} does not answer in time.") from error
        except (httpx.TransportError, httpx.InvalidURL, UnicodeError) as error:
            raise EngineUnreachable(
                f"No engine answers at {self.url} ({error}). Start one with `durable dev`, or set DURABLE_URL or --url."
            ) from error
        try:
            answer = response.json()
        except ValueError:
            raise EngineUnreachable(
                f"What answers at {self.url} is not an engine ({response.status_code}, no JSON). Check DURABLE_URL."
            ) from None
        if response.is_success:
            return ApiAnswer(answer, response.text)
        fields = answer if isinstance(answer, dict) else {}
        raise AnswerRefused(
            response.status_code,
            str(fields.get("code", "refused")),
            str(fields.get("message", f"The engine answered {response.status_code}.")),
            fields.get("hint"),
        )


def path_of(*parts: str) -> str:
    """A path of the API; each part is one part, whatever is in it."""
    return "/v1/" + "/".join(quote(part, safe="") for part in parts)


def as_body(fields: Mapping[str, Any]) -> bytes:
    """A JSON body without payloads."""
    return json.dumps(fields).encode()
