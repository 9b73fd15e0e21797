"""What the handler gets of what the engine tells: the event, and the result or error of a memo entry. Decodes, nothing else."""

from msgspec import UNSET

from durable.errors import StepError
from durable.event import Event
from durable.json_text import decode
from durable.open_step import OpenStep
from durable.runtime import Outcome
from durable.wire import Invocation, MemoEntry


def read_event(invocation: Invocation) -> Event:
    """The event that started the run."""
    event = invocation.event
    return Event(id=event.id, name=event.name, data=decode(bytes(event.data)), received_at=event.received_at)


def read_entry(step: OpenStep, entry: MemoEntry) -> Outcome:
    """What the handler gets for a memo entry; an entry without data is the result that this invocation sent."""
    try:
        if entry.error is not UNSET:
            words = decode(bytes(entry.error))
            return Outcome(
                error=StepError(
                    name=str(words.get("name", "Error")),
                    message=str(words.get("message", "")),
                    code=words.get("code"),
                    step_id=step.id,
                )
            )
        data = step.result if entry.data is UNSET else entry.data
        assert data is not None, "_resolve lets no entry without a result pass"
        return Outcome(value=step.read(decode(bytes(data))))
    except Exception as error:
        return Outcome(error=error)
