"""What the services of one engine share: the database, the writers, the hints and the invocations under way. It does nothing itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import UUID

import trio

from engine.nursery.inflight import BYTES_IN_FLIGHT_MAX, InflightRuns
from engine.nursery.intake import Intake
from engine.store.append_events import AppendedEvent, NewEvent
from engine.store.apply_outcomes import RunReport
from engine.store.database import Database
from engine.store.group_writer import GroupWriter
from engine.store.hints import Hints
from engine.store.keyring import Keyring
from engine.transport.app_client import AppClient
from protocol.requests import EntryAnswer


@dataclass(frozen=True)
class Limits:
    """The times and counts that an operator may set."""

    lease_seconds: float = 30.0
    drain_seconds: float = 30.0
    runs_in_flight_max: int = 1024
    # Of invocations that were handed over: their payloads stay in memory, here and in the apps, until they end.
    bytes_in_flight_max: int = BYTES_IN_FLIGHT_MAX


@dataclass(frozen=True)
class EngineContext:
    """One engine process."""

    engine_id: UUID
    name: str
    database: Database
    events: GroupWriter[NewEvent, AppendedEvent]
    reports: GroupWriter[RunReport, EntryAnswer]
    hints: Hints
    inflight: InflightRuns
    intake: Intake
    apps: AppClient
    keyring: Keyring
    limits: Limits
    draining: trio.Event = field(default_factory=trio.Event)
