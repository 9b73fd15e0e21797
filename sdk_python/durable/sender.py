"""Sends checkpoints: gathers the entries of all runs that wait, one signed request at a time.

Owns the queue between invocations and the engine, and the tries: a request that the engine did not take is sent
again, with growing pauses, while the deadline of an entry has not passed. Never looks into ops, and never sends two
entries of one run in a message.
"""

import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Protocol

from durable.errors import EngineUnreachable, Refused
from durable.runtime import Signal, current_runtime
from durable.wire import CheckpointEntry, EntryAnswer, WireFault, WireRefusal, Workspace, decode_checkpoint_answer, encode

logger: Final = logging.getLogger("durable")

ENTRIES_MAX: Final = 500
MESSAGE_BYTES_MAX: Final = 16 << 20
PAUSE_SECONDS_MIN: Final = 0.1
PAUSE_SECONDS_MAX: Final = 2.0
TRIED_AGAIN: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses that say nothing about the message: the same one may be taken a moment later."""

ENTRY_FAULTS: Final = frozenset({400, 413, 422})
"""Statuses that say that an entry of the message is bad; others concern the app as a whole, such as its key."""

Post = Callable[[str, bytes, str], Awaitable[bytes]]
"""`post(path, body, type)`: send one signed request with a new webhook-id, give the verified answer. Raises
`EngineUnreachable`, or `Refused` with the HTTP status.
"""


class Sender(Protocol):
    """Takes the ops of one run to the engine."""

    async def submit(self, entry: CheckpointEntry, *, deadline: float) -> EntryAnswer:
        """The engine's answer. `EngineUnreachable` when none came until the monotonic instant `deadline`."""
        ...


class CheckpointSender:
    """Group commit: what gathers while one request is under way goes together in the next.

    sender = CheckpointSender(client.post, workspace)
    nursery.start_soon(sender.serve)
    answer = await sender.submit(entry, deadline=time.monotonic() + 30)
    """

    def __init__(self, post: Post, workspace: Workspace) -> None:
        self._post = post
        self._head = b'{"type":"checkpoint","workspace":' + encode(workspace) + b',"entries":['
        self._queue: deque[_Waiting] = deque()
        self._on_the_wire: list[_Waiting] = []
        self._arrived: Signal | None = None

    async def serve(self) -> None:
        """Send what `submit` brings, until cancelled. Runs on the loop of the invocations, asyncio or Trio."""
        self._arrived = current_runtime().new_signal()
        try:
            while True:
                while self._queue:
                    self._on_the_wire = self._take_group()
                    await self._send(self._on_the_wire)
                await self._arrived.wait(None)
        finally:
            self._arrived = None
            for waiting in (*self._on_the_wire, *self._queue):
                if waiting.answer is None and waiting.error is None:
                    waiting.fail("The app stops serving.")
            self._queue.clear()

    async def submit(self, entry: CheckpointEntry, *, deadline: float) -> EntryAnswer:
        """See `Sender.submit`. An entry that comes before `serve` has begun waits for it."""
        waiting = _Waiting(entry, encode(entry), deadline, current_runtime().new_signal())
        self._queue.append(waiting)
        if self._arrived is not None:
            self._arrived.set()
        try:
            while waiting.answer is None and waiting.error is None:
                # While it is served the sender keeps the deadline: it may have the entry on the wire at that moment.
                is_served = self._arrived is not None
                was_woken = await waiting.done.wait(None if is_served else deadline)
                if not was_woken and self._arrived is None:
                    raise EngineUnreachable("Checkpoints are not being sent: CheckpointSender.serve() is not running.")
        finally:
            waiting.is_given_up = True
        if waiting.answer is None:
            raise waiting.error or EngineUnreachable("The engine gave no answer.")
        return waiting.answer

    def _take_group(self) -> "list[_Waiting]":
        """The next entries that may travel together; what does not fit stays in the queue, in order."""
        group: list[_Waiting] = []
        runs: set[str] = set()
        size_bytes = 0
        left: deque[_Waiting] = deque()
        while self._queue:
            waiting = self._queue.popleft()
            if waiting.is_given_up:
                continue
            is_full = len(group) >= ENTRIES_MAX or (group and size_bytes + len(waiting.body) > MESSAGE_BYTES_MAX)
            if is_full or waiting.entry.run_id in runs:
                left.append(waiting)
                if is_full:
                    break
                continue
            group.append(waiting)
            runs.add(waiting.entry.run_id)
            size_bytes += len(waiting.body) + 1
        left.extend(self._queue)
        self._queue = left
        return group

    async def _send(self, group: "list[_Waiting]") -> None:
        """Send until there is an answer for each of the group, or its deadline has passed."""
        pause_seconds = PAUSE_SECONDS_MIN
        while group := [waiting for waiting in group if not waiting.is_given_up]:
            try:
                raw = await self._post("/v1/checkpoint", self._message(group), "checkpoint")
                _hand_out(group, raw)
                return
            except (EngineUnreachable, WireFault) as error:
                why = str(error)
            except Refused as refused:
                if refused.status not in TRIED_AGAIN:
                    await self._take_refusal(group, refused)
                    return
                why = str(refused)
            group = _drop_overdue(group, pause_seconds, why)
            if group:
                logger.warning("checkpoint of %d runs is sent again in %.1f s: %s", len(group), pause_seconds, why)
                await current_runtime().new_signal().wait(time.monotonic() + pause_seconds)
                pause_seconds = min(pause_seconds * 2, PAUSE_SECONDS_MAX)

    async def _take_refusal(self, group: "list[_Waiting]", refused: Refused) -> None:
        if refused.status not in ENTRY_FAULTS:
            for waiting in group:
                waiting.fail(f"The engine refuses this app's checkpoints ({refused.code}): {refused}")
        elif len(group) == 1:
            error = WireRefusal(refused.code, refused.message, refused.hint, refused.place)
            entry = group[0].entry
            group[0].succeed(EntryAnswer(entry.run_id, entry.generation, "refused", error=error))
        else:
            # One entry spoils the message. Each on its own finds it and lets the others through.
            for waiting in group:
                await self._send([waiting])

    def _message(self, group: "list[_Waiting]") -> bytes:
        return self._head + b",".join([waiting.body for waiting in group]) + b"]}"


@dataclass(slots=True, eq=False)
class _Waiting:
    """An entry, and where its invocation waits for the answer."""

    entry: CheckpointEntry
    body: bytes
    deadline: float
    done: Signal
    answer: EntryAnswer | None = None
    error: EngineUnreachable | None = None
    is_given_up: bool = False

    def succeed(self, answer: EntryAnswer) -> None:
        self.answer = answer
        self.done.set()

    def fail(self, why: str) -> None:
        self.error = EngineUnreachable(why)
        self.done.set()


def _hand_out(group: list[_Waiting], raw: bytes) -> None:
    """Give each entry its answer. WireFault when the message is none, or lacks one."""
    answers = {(answer.run_id, answer.generation): answer for answer in decode_checkpoint_answer(raw).entries}
    missing = [waiting for waiting in group if (waiting.entry.run_id, waiting.entry.generation) not in answers]
    if missing:
        raise WireFault(f"The engine's answer says nothing of the run {missing[0].entry.run_id}.")
    for waiting in group:
        waiting.succeed(answers[waiting.entry.run_id, waiting.entry.generation])


def _drop_overdue(group: list[_Waiting], pause_seconds: float, why: str) -> list[_Waiting]:
    now = time.monotonic()
    for waiting in group:
        if now + pause_seconds >= waiting.deadline:
            waiting.fail(f"No checkpoint came through before the lease's end. {why}")
    return [waiting for waiting in group if waiting.error is None]
