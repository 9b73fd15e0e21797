"""How an invocation, or a part of it, turned out: what the app reported, or why it could not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from protocol.ops import Op


@dataclass(frozen=True, slots=True)
class Reported:
    """The app reported `ops`, after it was told the memo up to `known`; `ends` when the invocation is over."""

    ops: tuple[Op, ...]
    known: int
    ends: bool


@dataclass(frozen=True, slots=True)
class Undelivered:
    """The app never got the invocation: refused, unknown host, 429, 502–504, or it does not know the function."""

    cause: Literal["app_unreachable", "unknown_function"]
    detail: str
    retry_after_seconds: float | None = None
    others_succeed: bool = False


@dataclass(frozen=True, slots=True)
class CallDied:
    """The call that carried this run alone broke, timed out, or brought garbage: a failed attempt of the function."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The engine or the lease was lost, through no fault that could be pinned on this run."""

    cause: Literal["lease_lost", "engine_died", "shared_call_died"]


@dataclass(frozen=True, slots=True)
class HandedBack:
    """The engine drains and gives the run back; nothing is counted."""


Outcome = Reported | Undelivered | CallDied | Interrupted | HandedBack
