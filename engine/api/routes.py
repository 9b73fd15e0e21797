"""What a route is: an address, a method, who may use it and the function that answers. There is no route outside such a row.

`apps` are signed requests, `events` are those or an event key, `people` show an admin token, `anyone` is for health checks only.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from msgspec import Struct

from engine.api.authenticate import Authenticator, Caller, Person
from engine.api.services import Services
from protocol.limits import BODY_BYTES_MAX

# Events of 1 MiB with the rest of their message; people's routes carry one value at a time.
PEOPLE_BODY_BYTES_MAX = 8 << 20
# Of every answer.
COMMON_HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff"}


@dataclass(frozen=True, slots=True)
class PeopleRequest:
    """A request of a person: the parts of its path, its query, its body, and what checks changes."""

    person: Person
    path: Mapping[str, str]
    query: Mapping[str, str]
    body: bytes
    authenticator: Authenticator


@dataclass(frozen=True, slots=True)
class MachineRoute:
    """`answer(services, caller, body)` gives the message that answers a signed message. A long poll is given up when its client
    hangs up; what others began is finished.
    """

    path: str
    method: Literal["POST", "PUT"]
    access: Literal["apps", "events"]
    answer: Callable[[Services, Caller, bytes], Awaitable[Struct]]
    body_bytes_max: int = BODY_BYTES_MAX
    is_long_poll: bool = False


@dataclass(frozen=True, slots=True)
class PeopleRoute:
    """`answer(services, request)` gives what is sent as JSON."""

    path: str
    method: Literal["GET", "POST", "DELETE"]
    answer: Callable[[Services, PeopleRequest], Awaitable[Any]]
    access: Literal["people"] = "people"
    body_bytes_max: int = PEOPLE_BODY_BYTES_MAX


@dataclass(frozen=True, slots=True)
class HealthRoute:
    """`answer(services)` gives whether all is well, and what is sent as JSON."""

    path: str
    answer: Callable[[Services], Awaitable[tuple[bool, Any]]]
    method: Literal["GET"] = "GET"
    access: Literal["anyone"] = "anyone"


Route = MachineRoute | PeopleRoute | HealthRoute
