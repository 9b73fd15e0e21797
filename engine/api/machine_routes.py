"""The routes for programs (SPEC section 6): checkpoint, alive, values, events, start, result, sync. Messages in, messages out.

Who asks is settled before, signatures are put on after. Checkpoint and events are the hot ones: decode, submit, encode, nothing
else.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable
from typing import Final, TypeVar
from uuid import UUID

import trio
from msgspec import UNSET, Raw

from engine.api.alive import alive
from engine.api.authenticate import Caller
from engine.api.refusals import ApiRefused
from engine.api.routes import MachineRoute
from engine.api.services import Services
from engine.api.values import values
from engine.api.wait_result import wait_result
from engine.core.ids import uuid7
from engine.store.append_events import AppendedEvent, NewEvent
from engine.store.apply_outcomes import report_of_entry
from engine.store.crash_points import crash_point
from engine.store.find_function import find_function
from engine.store.read_result import RunResult
from engine.store.sync_app import sync_app
from protocol.messages import (
    CheckpointAnswer,
    EntryAnswer,
    EventAnswer,
    EventsAnswer,
    ResultAnswer,
    StartAnswer,
    StartedRun,
    SyncAnswer,
    decode_checkpoint,
    decode_events,
    decode_result,
    decode_start,
    decode_sync,
)

T = TypeVar("T")

START_EVENT_NAME: Final = "durable.start"
# Writers wait for a lost database; those who wait for a writer are sent away sooner than their own time-outs.
WRITE_SECONDS_MAX: Final = 15.0


async def checkpoint(services: Services, caller: Caller, body: bytes) -> CheckpointAnswer:
    """Apply what runs report; each entry gets its own answer."""
    message, refused = decode_checkpoint(body)
    caller.require(message.workspace)
    crash_point("checkpoint_before_apply")
    reports = [report_of_entry(caller.workspace_id, entry) for entry in message.entries]
    answers = await written(services.reports.submit_all(reports)) if reports else []
    crash_point("checkpoint_applied_before_answer")
    for report, answer in zip(reports, answers, strict=True):
        if answer.status == "ok":
            services.on_checkpoint(report.run_id)
    answers += [EntryAnswer(entry.run_id, entry.generation, "refused", error=entry.error) for entry in refused]
    return CheckpointAnswer(answers)


async def events(services: Services, caller: Caller, body: bytes) -> EventsAnswer:
    """Take events in; the answer comes when they can not be lost any more."""
    message = decode_events(body)
    caller.require(message.workspace)
    appended = await written(
        services.events.submit_all(
            [
                NewEvent(
                    caller.workspace_id,
                    new_event_id(),
                    event.name,
                    bytes(event.data).decode(),
                    event.id if event.id is not UNSET else None,
                )
                for event in message.events
            ]
        )
    )
    crash_point("events_committed_before_answer")
    return EventsAnswer([event_answer(event) for event in appended])


async def start(services: Services, caller: Caller, body: bytes) -> StartAnswer:
    """Start one run of one function."""
    message = decode_start(body)
    caller.require(message.workspace)
    sent_id = message.id if message.id is not UNSET else None
    appended = await start_run(services, caller.workspace_id, message.function, bytes(message.input).decode(), sent_id)
    return StartAnswer(str(appended.runs[0][0]), appended.is_duplicate)


async def result(services: Services, caller: Caller, body: bytes) -> ResultAnswer:
    """Where a run stands, or what came out of it; waits for its end if asked to."""
    message = decode_result(body)
    caller.require(message.workspace)
    found = await wait_result(services, caller.workspace_id, UUID(message.run_id), message.wait_seconds)
    return result_answer(message.run_id, found)


async def sync(services: Services, caller: Caller, body: bytes) -> SyncAnswer:
    """Take the manifest of the app that signed it."""
    message = decode_sync(body)
    caller.require(message.workspace)
    synced = await services.transact(sync_app, caller.workspace_id, message.url, message.manifest)
    if synced.has_due_runs:
        services.hints.runs_are_due()
    if synced.owes_promotion:
        services.hints.promotion_owed.give()
    return SyncAnswer(synced.functions, synced.is_changed)


MACHINE_ROUTES: Final = (
    MachineRoute("/v1/checkpoint", "POST", "apps", checkpoint),
    MachineRoute("/v1/alive", "POST", "apps", alive, body_bytes_max=2 << 20, is_long_poll=True),
    MachineRoute("/v1/values", "POST", "apps", values),
    MachineRoute("/v1/events", "POST", "events", events),
    MachineRoute("/v1/start", "POST", "apps", start, body_bytes_max=2 << 20),
    MachineRoute("/v1/result", "POST", "apps", result, body_bytes_max=64 << 10, is_long_poll=True),
    MachineRoute("/v1/sync", "PUT", "apps", sync, body_bytes_max=8 << 20),
)


async def start_run(services: Services, workspace_id: int, function: str, input_json: str, sent_id: str | None) -> AppendedEvent:
    """Start the function with this input; the same id again within a day gives the first run."""
    found = await services.database.read(find_function, workspace_id, function)
    if found is None:
        raise ApiRefused(
            "function_not_found",
            f"The workspace has no function {function!r}.",
            "Check the id, and that the app which has it was synced.",
        )
    if found.is_removed:
        raise ApiRefused(
            "function_removed",
            f"The app does not have the function {function!r} any more.",
            "Start one that it has, or deploy it again.",
        )
    event = NewEvent(
        workspace_id,
        new_event_id(),
        START_EVENT_NAME,
        input_json,
        sent_id,
        scope=f"start:{function}",
        only_function_id=found.function_id,
    )
    return await written(services.events.submit(event))


async def written(write: Awaitable[T]) -> T:
    """Wait for a write, but not for ever: the database may be away."""
    with trio.move_on_after(WRITE_SECONDS_MAX):
        return await write
    raise ApiRefused(
        "write_pending",
        "The database did not take it in time; it may still be written.",
        "Send it again with the same ids: what was written is recognized.",
    )


def event_answer(appended: AppendedEvent) -> EventAnswer:
    """The answer for one event."""
    return EventAnswer(
        appended.visible_id,
        [StartedRun(str(run_id), function) for run_id, function in appended.runs],
        appended.is_duplicate,
        appended.is_conflict,
    )


def result_answer(run_id: str, found: RunResult | None) -> ResultAnswer:
    """The answer about a run, or the refusal for one that the workspace does not have."""
    if found is None:
        raise ApiRefused("run_not_found", f"The workspace has no run {run_id}.", "Check the run id and the environment.")
    return ResultAnswer(
        run_id,
        found.status,
        UNSET if found.output is None else Raw(found.output.encode()),
        UNSET if found.error is None else Raw(found.error.encode()),
    )


def new_event_id() -> UUID:
    """Made before the first try to write, so that a repeated write is recognized."""
    return uuid7(time.time_ns() // 1_000_000, os.urandom(10))
