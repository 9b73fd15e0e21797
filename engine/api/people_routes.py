"""The routes for people and their scripts: lists, single runs and events, and the few changes. All need an admin token.

The workspace stands in the path; what the path does not name is not found, so nothing of another workspace shows. Every change is
written to the audit log with who made it.
"""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from engine.api.machine_routes import event_answer, new_event_id, start_run, written
from engine.api.refusals import ApiRefused
from engine.api.routes import PeopleRequest, PeopleRoute
from engine.api.services import Services
from engine.api.wait_result import wait_result
from engine.store.append_events import NewEvent
from engine.store.audit import audit
from engine.store.audit_entries import AuditEntry, append_audit_entry, with_audit_entry
from engine.store.cancel_run import CancelResult, cancel_run
from engine.store.event_keys import create_event_key, list_event_keys, revoke_event_key
from engine.store.list_apps import list_apps
from engine.store.list_events import list_events
from engine.store.list_functions import list_functions
from engine.store.list_runs import RunFilter, list_runs
from engine.store.read_event import read_event
from engine.store.read_run import read_run
from engine.store.run_status import STATUSES
from engine.store.signing_keys import create_signing_key, list_signing_keys, revoke_signing_key
from engine.store.workspaces import find_or_create_workspace, find_workspace
from protocol import limits, names
from protocol.decode import decode
from protocol.durations import DurationRefused, parse_duration
from protocol.manifest import Workspace
from protocol.ops import EventIn, check_count, check_event, check_size
from protocol.requests import EventsAnswer, StartAnswer

WORKSPACE: Final = "/v1/apps/<app>/<env>"
LABEL_CHARACTERS_MAX: Final = 100


class StartIn(Struct, frozen=True):
    """The body of a start."""

    input: Raw = Raw(b"null")
    id: str | UnsetType = UNSET


class EventsIn(Struct, frozen=True):
    """The body of sent events."""

    events: list[EventIn]


class KeyIn(Struct, frozen=True):
    """The body of a new key: `signing` for apps, `event` for senders. `label` is for people, and only for event keys."""

    kind: str
    label: str = ""


_STARTS: Final = msgspec.json.Decoder(StartIn)
_EVENTS: Final = msgspec.json.Decoder(EventsIn)
_KEYS: Final = msgspec.json.Decoder(KeyIn)


# Looking ------------------------------------------------------------------------------------------------------------


async def apps(services: Services, asked: PeopleRequest) -> Any:
    _query(asked)
    return {"apps": await services.database.read(list_apps)}


async def functions(services: Services, asked: PeopleRequest) -> Any:
    _query(asked)
    workspace_id, _ = await _workspace(services, asked)
    return {"functions": await services.database.read(list_functions, workspace_id)}


async def runs(services: Services, asked: PeopleRequest) -> Any:
    query = _query(asked, "status", "function", "event", "cursor", "limit")
    workspace_id, _ = await _workspace(services, asked)
    status = query.get("status")
    if status is not None and status not in STATUSES:
        raise _bad_parameter("status", f"it is one of {', '.join(STATUSES)}")
    if (function := query.get("function")) is not None and (problem := names.function_problem(function)):
        raise _bad_parameter("function", problem)
    if (event := query.get("event")) is not None and (problem := names.event_name_problem(event)):
        raise _bad_parameter("event", problem)
    run_filter = RunFilter(status, function, event)
    return await services.database.read(
        list_runs, workspace_id, run_filter, query.get("cursor"), runs_max=_limit(query.get("limit"))
    )


async def run(services: Services, asked: PeopleRequest) -> Any:
    query = _query(asked, "wait")
    workspace_id, _ = await _workspace(services, asked)
    run_id = _run_id(asked.path["run_id"])
    if (wait := query.get("wait")) is not None:
        await wait_result(services, workspace_id, run_id, _wait_seconds(wait))
    found = await services.database.read(read_run, workspace_id, run_id)
    if found is None:
        raise _no_run(asked.path["run_id"])
    return found


async def events(services: Services, asked: PeopleRequest) -> Any:
    query = _query(asked, "name", "cursor", "limit")
    workspace_id, _ = await _workspace(services, asked)
    if (name := query.get("name")) is not None and (problem := names.event_name_problem(name)):
        raise _bad_parameter("name", problem)
    return await services.database.read(
        list_events, workspace_id, name, query.get("cursor"), events_max=_limit(query.get("limit"))
    )


async def event(services: Services, asked: PeopleRequest) -> Any:
    _query(asked)
    workspace_id, _ = await _workspace(services, asked)
    event_id = asked.path["event_id"]
    found = None
    if names.event_id_problem(event_id) is None:
        found = await services.database.read(read_event, workspace_id, event_id)
    if found is None:
        raise ApiRefused(
            "event_not_found",
            f"The workspace has no event {names.shown(event_id)}.",
            "Ids of senders are found for 24 hours; the engine's own event ids for ever.",
        )
    return found


async def findings(services: Services, asked: PeopleRequest) -> Any:
    _query(asked)
    found = await services.database.read(audit)
    return {"count": len(found), "findings": found}


async def engine_tasks(services: Services, asked: PeopleRequest) -> Any:
    _query(asked)
    return services.task_tree()


async def engine_info(services: Services, asked: PeopleRequest) -> Any:
    _query(asked)
    ready, reason = await services.is_ready()
    return {
        **msgspec.to_builtins(services.engine),
        "mode": services.mode,
        "is_draining": services.is_draining(),
        "is_ready": ready,
        "reason": None if ready else reason,
    }


# Changing -----------------------------------------------------------------------------------------------------------


async def cancel(services: Services, asked: PeopleRequest) -> Any:
    workspace_id, workspace = await _workspace(services, asked)
    run_id = _run_id(asked.path["run_id"])
    await asked.authenticator.authorize_change(asked.person, workspace)
    entry = AuditEntry(asked.person.actor, "run.cancel", str(run_id), workspace_id)
    cancelled = await services.transact(with_audit_entry, entry, _is_cancelled, cancel_run, workspace_id, run_id)
    if cancelled.status == "not_found":
        raise _no_run(asked.path["run_id"])
    if cancelled.status == "already_ended" and cancelled.ended_status != "cancelled":
        raise ApiRefused("already_ended", f"The run has {cancelled.ended_status} already.", "Nothing was changed.")
    services.hints.runs_ended([run_id])
    if cancelled.has_due_runs:
        services.hints.runs_are_due()
    if cancelled.owes_promotion:
        services.hints.promotion_owed.give()
    return {"run_id": str(run_id), "status": "cancelled"}


async def start(services: Services, asked: PeopleRequest) -> Any:
    workspace_id, workspace = await _workspace(services, asked)
    function = asked.path["function"]
    if (problem := names.function_problem(function)) is not None:
        raise ApiRefused("function_not_found", problem, "GET …/functions lists them.")
    message = decode(asked.body or b"{}", _STARTS)
    check_size(message.input, limits.EVENT_BYTES_MAX, "input", "/input")
    sent_id = message.id if message.id is not UNSET else None
    _check_sent_id(sent_id)
    await asked.authenticator.authorize_change(asked.person, workspace)
    appended = await start_run(services, workspace_id, function, bytes(message.input).decode(), sent_id)
    run_id = str(appended.runs[0][0])
    await services.transact(
        append_audit_entry, AuditEntry(asked.person.actor, "function.start", f"{function} {run_id}", workspace_id)
    )
    return StartAnswer(run_id, appended.is_duplicate)


async def send_events(services: Services, asked: PeopleRequest) -> Any:
    workspace_id, workspace = await _workspace(services, asked)
    message = decode(asked.body, _EVENTS)
    check_count(len(message.events), 1, limits.EVENTS_PER_MESSAGE_MAX, "events", "/events")
    for index, sent in enumerate(message.events):
        check_event(sent, f"/events/{index}")
    await asked.authenticator.authorize_change(asked.person, workspace)
    new_events = [
        NewEvent(workspace_id, new_event_id(), sent.name, bytes(sent.data).decode(), sent.id if sent.id is not UNSET else None)
        for sent in message.events
    ]
    appended = await written(services.events.submit_all(new_events))
    ids = ", ".join(each.visible_id for each in appended[:3]) + (f" and {len(appended) - 3} more" if len(appended) > 3 else "")
    await services.transact(append_audit_entry, AuditEntry(asked.person.actor, "event.send", ids, workspace_id))
    return EventsAnswer([event_answer(each) for each in appended])


# Keys ---------------------------------------------------------------------------------------------------------------


async def keys(services: Services, asked: PeopleRequest) -> Any:
    _query(asked)
    workspace_id, _ = await _workspace(services, asked)
    return {
        "signing_keys": await services.database.read(list_signing_keys, workspace_id),
        "event_keys": await services.database.read(list_event_keys, workspace_id),
    }


async def create_key(services: Services, asked: PeopleRequest) -> Any:
    """The first key of a workspace makes the workspace: its app can not sign anything before."""
    workspace = _named_workspace(asked)
    message = decode(asked.body, _KEYS)
    if message.kind not in ("signing", "event"):
        raise ApiRefused("bad_field", "`kind` is `signing` or `event`.", "Say which kind of key to make.")
    if len(message.label) > LABEL_CHARACTERS_MAX or not message.label.isprintable():
        raise ApiRefused("bad_field", f"`label` has at most {LABEL_CHARACTERS_MAX} printable characters.", "Shorten it.")
    await asked.authenticator.authorize_change(asked.person, workspace)
    workspace_id = await services.transact(find_or_create_workspace, workspace.app, workspace.env)
    entry = AuditEntry(asked.person.actor, "key.create", message.kind, workspace_id)
    if message.kind == "signing":
        key_id, text = await services.transact(
            with_audit_entry, entry, _is_made, create_signing_key, services.sealer, workspace_id
        )
        services.keys.forget(workspace.app, workspace.env)
        return {"kind": "signing", "key_id": str(key_id), "key": text}
    event_key_id, text = await services.transact(with_audit_entry, entry, _is_made, create_event_key, workspace_id, message.label)
    return {"kind": "event", "key_id": event_key_id, "key": text}


async def revoke_key(services: Services, asked: PeopleRequest) -> Any:
    workspace_id, workspace = await _workspace(services, asked)
    key_id = asked.path["key_id"]
    await asked.authenticator.authorize_change(asked.person, workspace)
    entry = AuditEntry(asked.person.actor, "key.revoke", key_id[:100], workspace_id)
    if (signing_key_id := _as_uuid(key_id)) is not None:
        is_revoked = await services.transact(with_audit_entry, entry, bool, revoke_signing_key, workspace_id, signing_key_id)
    elif (key_sha256 := _as_sha256(key_id)) is not None:
        is_revoked = await services.transact(with_audit_entry, entry, bool, revoke_event_key, workspace_id, key_sha256)
    else:
        is_revoked = False
    if not is_revoked:
        raise ApiRefused("key_not_found", "The workspace has no such live key.", "GET …/keys lists them.")
    services.keys.forget(workspace.app, workspace.env)
    return {"key_id": key_id, "status": "revoked"}


PEOPLE_ROUTES: Final = (
    PeopleRoute("/v1/apps", "GET", apps),
    PeopleRoute(f"{WORKSPACE}/functions", "GET", functions),
    PeopleRoute(f"{WORKSPACE}/functions/<function>/start", "POST", start),
    PeopleRoute(f"{WORKSPACE}/runs", "GET", runs),
    PeopleRoute(f"{WORKSPACE}/runs/<run_id>", "GET", run),
    PeopleRoute(f"{WORKSPACE}/runs/<run_id>/cancel", "POST", cancel),
    PeopleRoute(f"{WORKSPACE}/events", "GET", events),
    PeopleRoute(f"{WORKSPACE}/events", "POST", send_events),
    PeopleRoute(f"{WORKSPACE}/events/<path:event_id>", "GET", event),
    PeopleRoute(f"{WORKSPACE}/keys", "GET", keys),
    PeopleRoute(f"{WORKSPACE}/keys", "POST", create_key),
    PeopleRoute(f"{WORKSPACE}/keys/<key_id>", "DELETE", revoke_key),
    PeopleRoute("/v1/audit", "GET", findings),
    PeopleRoute("/v1/engine", "GET", engine_info),
    PeopleRoute("/v1/engine/tasks", "GET", engine_tasks),
)


# Reading what was asked ---------------------------------------------------------------------------------------------


async def _workspace(services: Services, asked: PeopleRequest) -> tuple[int, Workspace]:
    workspace = _named_workspace(asked)
    workspace_id = await services.database.read(find_workspace, workspace.app, workspace.env)
    if workspace_id is None:
        raise ApiRefused("workspace_not_found", f"There is no workspace {workspace}.", "GET /v1/apps lists the workspaces.")
    return workspace_id, workspace


def _named_workspace(asked: PeopleRequest) -> Workspace:
    app, env = asked.path["app"], asked.path["env"]
    if problem := names.app_problem(app) or names.environment_problem(env):
        raise ApiRefused("workspace_not_found", problem, "GET /v1/apps lists the workspaces.")
    return Workspace(app, env)


def _query(asked: PeopleRequest, *allowed: str) -> dict[str, str]:
    """The parameters of the query. An unknown one is refused: a filter with a slip in its name would show everything."""
    for name in asked.query:
        if name not in allowed:
            known = f"There are: {', '.join(allowed)}." if allowed else "There are none here."
            raise ApiRefused("bad_parameter", f"There is no parameter {names.shown(name)}.", known)
    return dict(asked.query)


def _bad_parameter(name: str, problem: str) -> ApiRefused:
    return ApiRefused("bad_parameter", f"The parameter {name} can not be used: {problem}", "Mend it and ask again.")


def _limit(text: str | None) -> int:
    if text is None:
        return 50
    if not (text.isascii() and text.isdigit()) or len(text) > 6 or int(text) == 0:
        raise _bad_parameter("limit", "it is a number from 1 on.")
    return int(text)


def _wait_seconds(text: str) -> float:
    try:
        seconds = parse_duration(float(text) if text.isascii() and text.isdigit() else text)
    except DurationRefused as refused:
        raise _bad_parameter("wait", str(refused)) from None
    if seconds > limits.WAIT_SECONDS_MAX:
        raise _bad_parameter("wait", f"it is at most {limits.WAIT_SECONDS_MAX}s; ask again for longer.")
    return seconds


def _run_id(text: str) -> UUID:
    if names.run_problem(text) is not None:
        raise _no_run(text)
    return UUID(text)


def _no_run(text: str) -> ApiRefused:
    return ApiRefused(
        "run_not_found", f"The workspace has no run {names.shown(text)}.", "Check the run id, the app and the environment."
    )


def _check_sent_id(sent_id: str | None) -> None:
    if sent_id is not None and (problem := names.event_id_problem(sent_id)) is not None:
        raise ApiRefused("bad_field", problem, "Mend `id`, or leave it out.")


def _is_cancelled(result: CancelResult) -> bool:
    return result.status == "cancelled"


def _is_made(_: object) -> bool:
    return True


def _as_uuid(text: str) -> UUID | None:
    return UUID(text) if names.run_problem(text) is None else None


def _as_sha256(text: str) -> bytes | None:
    try:
        return bytes.fromhex(text) if len(text) == 64 and text.isascii() and text.isalnum() else None
    except ValueError:
        return None
