"""From bytes to the structs of `wire` and back: one decoder per place where bytes arrive, one `encode`.

Signatures are verified before, by `signing`. Every decoder raises `WireFault` and nothing else.
"""

from typing import Final, TypeVar

import msgspec
from msgspec import Raw, Struct

from durable.errors import DurableError
from durable.wire import (
    AliveAnswer,
    CheckpointAnswer,
    Ended,
    ErrorWords,
    EventsAnswer,
    Invoke,
    ManifestQuestion,
    ResultAnswer,
    StartAnswer,
    Started,
    SyncAnswer,
    ValuesAnswer,
    WireRefusal,
)

M = TypeVar("M")


class WireFault(DurableError, ValueError):
    """The bytes are not the message that belongs here: engine and SDK are too far apart in age. Nothing of it was used."""

    code: str = "bad_message"


_ENCODER: Final = msgspec.json.Encoder()
_CALLS: Final[msgspec.json.Decoder[ManifestQuestion | Invoke]] = msgspec.json.Decoder(ManifestQuestion | Invoke)
_CHECKPOINT_ANSWERS: Final = msgspec.json.Decoder(CheckpointAnswer)
_EVENTS_ANSWERS: Final = msgspec.json.Decoder(EventsAnswer)
_START_ANSWERS: Final = msgspec.json.Decoder(StartAnswer)
_RESULT_ANSWERS: Final = msgspec.json.Decoder(ResultAnswer)
_SYNC_ANSWERS: Final = msgspec.json.Decoder(SyncAnswer)
_ALIVE_ANSWERS: Final = msgspec.json.Decoder(AliveAnswer)
_VALUES_ANSWERS: Final = msgspec.json.Decoder(ValuesAnswer)
_REFUSALS: Final = msgspec.json.Decoder(WireRefusal)
_ERRORS: Final = msgspec.json.Decoder(ErrorWords)
_LINES: Final[msgspec.json.Decoder[Started | Ended]] = msgspec.json.Decoder(Started | Ended)


def encode(message: Struct) -> bytes:
    """The bytes of a message: compact, on one line unless a payload holds newlines, payloads as they were given."""
    return _ENCODER.encode(message)


def decode_call(raw: bytes) -> ManifestQuestion | Invoke:
    """What the engine asks at the serve URL."""
    return _decode(_CALLS, raw)


def decode_checkpoint_answer(raw: bytes) -> CheckpointAnswer:
    return _decode(_CHECKPOINT_ANSWERS, raw)


def decode_events_answer(raw: bytes) -> EventsAnswer:
    return _decode(_EVENTS_ANSWERS, raw)


def decode_start_answer(raw: bytes) -> StartAnswer:
    return _decode(_START_ANSWERS, raw)


def decode_result_answer(raw: bytes) -> ResultAnswer:
    return _decode(_RESULT_ANSWERS, raw)


def decode_sync_answer(raw: bytes) -> SyncAnswer:
    return _decode(_SYNC_ANSWERS, raw)


def decode_alive_answer(raw: bytes) -> AliveAnswer:
    return _decode(_ALIVE_ANSWERS, raw)


def decode_values_answer(raw: bytes) -> ValuesAnswer:
    return _decode(_VALUES_ANSWERS, raw)


def decode_refusal(raw: bytes) -> WireRefusal:
    """The body of a 4xx or 5xx."""
    return _decode(_REFUSALS, raw)


def decode_error(raw: bytes | Raw) -> ErrorWords:
    """The name, message, stack and code inside of an `error` payload."""
    return _decode(_ERRORS, raw)


def decode_line(raw: bytes) -> Started | Ended:
    """One line of a streamed reply, its signature taken off."""
    return _decode(_LINES, raw)


def _decode(decoder: "msgspec.json.Decoder[M]", raw: bytes | Raw) -> M:
    try:
        return decoder.decode(raw)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as fault:
        raise WireFault(f"The message can not be read: {fault}.") from None
