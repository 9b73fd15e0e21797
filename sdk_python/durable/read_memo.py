"""What the handler gets of what the engine tells: the event, and the result or error of a memo entry. Decodes, nothing else."""

from msgspec import UNSET, Raw

from durable.errors import StepError
from durable.event import Event
from durable.json_text import decode
from durable.open_step import OpenStep
from durable.runtime import Outcome
from durable.wire import Invocation, MemoEntry


def read_event(invocation: Invocation) -> Event:
    """The event that started the run."""
    event = invocation.event
    return Event(id=event.id, name=event.name, data=decode(event.data), received_at=event.received_at)


def read_entry(step: OpenStep, entry: MemoEntry, fetched: Raw | None = None) -> Outcome:
    """What the handler gets for a memo entry, `fetched` where it came as a reference. An entry without any of them is
    the result that this invocation sent.
    """
    try:
        if entry.error is not UNSET:
            words = decode(entry.error)
            return Outcome(
                error=StepError(
                    name=str(words.get("name", "Error")),
                    message=str(words.get("message", "")),
                    code=words.get("code"),
                    step_id=step.id,
                )
            )
        data = fetched if entry.data is UNSET else entry.data
        if data is None:
            return read_result(step)
        return Outcome(value=step.read(decode(data)))
    except Exception as error:
        return Outcome(error=error)


def read_result(step: OpenStep) -> Outcome:
    """What the handler gets for the result of a body that ran in this invocation: the decoded JSON, once."""
    assert step.result is not None, "no entry without a result is put in line for delivery"
    value, step.value = step.value, None
    return Outcome(value=step.read(value))
