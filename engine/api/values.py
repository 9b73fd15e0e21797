"""Values by reference: an app stores large results before the steps that have them, and fetches large memo entries when it needs them."""

from __future__ import annotations

from uuid import UUID

from msgspec import Raw

from engine.api.authenticate import Caller
from engine.api.refusals import ApiRefused
from engine.api.services import Services
from engine.store.crash_points import crash_point
from engine.store.stored_values import read_values, store_values
from protocol.limits import CALL_BYTES_MAX
from protocol.messages import Value, Values, ValuesAnswer, decode_values


async def values(services: Services, caller: Caller, body: bytes) -> ValuesAnswer:
    """Store values for a run, or give the values behind references of it."""
    message = decode_values(body)
    caller.require(message.workspace)
    return await (_store(services, caller, message) if message.store else _fetch(services, caller, message))


async def _store(services: Services, caller: Caller, message: Values) -> ValuesAnswer:
    texts = [bytes(value).decode() for value in message.store]
    refs = await services.transact(store_values, caller.workspace_id, UUID(message.run_id), texts)
    if refs is None:
        raise ApiRefused("run_not_found", f"The workspace has no run {message.run_id}.", "Check the run id and the environment.")
    crash_point("value_stored_before_answer")
    return ValuesAnswer(refs=refs)


async def _fetch(services: Services, caller: Caller, message: Values) -> ValuesAnswer:
    found = await services.database.read(read_values, caller.workspace_id, UUID(message.run_id), message.fetch, CALL_BYTES_MAX)
    if found.unknown:
        raise ApiRefused(
            "unknown_ref",
            f"The run {message.run_id} has no value {found.unknown[0]!r}.",
            "A reference is good for its own run; a stored value that no step took is gone after a day.",
        )
    return ValuesAnswer(values=[Value(ref, Raw(data.encode())) for ref, data in found.values.items()])
