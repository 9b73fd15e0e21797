"""Sends checkpoints: gathers the entries of all runs that wait, one signed request at a time.

Owns the queue between invocations and the engine, and the tries: a request that the engine did not take is sent
again, with growing pauses, while the deadline of an entry has not passed. Never looks into ops, and never sends two
entries of one run in a message.
"""

import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from durable.errors import EngineUnreachable, Refused
from durable.runtime import Signal, current_runtime
from durable.wire import CheckpointEntry, EntryAnswer, WireRefusal, Workspace
from durable.wire_codec import WireFault, decode_checkpoint_answer, encode

logger: Final = logging.getLogger("durable")

ENTRIES_MAX: Final = 500
MESSAGE_BYTES_MAX: Final = 4 << 20
"""A message is larger only when a single entry is."""

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

OnAnswer = Callable[[EntryAnswer | EngineUnreachable], None]


class Sender(Protocol):
    """Takes the ops of one run to the engine."""

    def submit_soon(self, entry: CheckpointEntry, deadline: float, on_answer: OnAnswer) -> object:
        """Send it. `on_answer` is called on this loop, with the engine's answer, or with `EngineUnreachable` when none
        came until the monotonic instant `deadline`.
        """
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
        self._on_the_wire: dict[str, _Waiting] = {}
        # None while the sender is not served.
        self._arrived: Signal | None = None

    async def serve(self) -> None:
        """Send what `submit` brings, until cancelled. Runs on the loop of the invocations, asyncio or Trio."""
        self._arrived = current_runtime().new_signal()
        try:
            while True:
                while group := self._take_group():
                    await self._send(group)
                    self._on_the_wire.clear()
                await self._arrived.wait(None)
        finally:
            self._arrived = None
            left = [*self._on_the_wire.values(), *self._queue]
            self._queue.clear()
            self._on_the_wire.clear()
            for waiting in left:
                waiting.fail("The app stops serving.")

    def submit_soon(self, entry: CheckpointEntry, deadline: float, on_answer: OnAnswer) -> "_Waiting":
        """See `Sender.submit_soon`. An entry that comes before `serve` has begun waits for it."""
        waiting = _Waiting(entry, deadline, on_answer)
        self._queue.append(waiting)
        if self._arrived is not None:
            self._arrived.set()
        return waiting

    async def submit(self, entry: CheckpointEntry, *, deadline: float) -> EntryAnswer:
        """`submit_soon`, and wait for the answer. Raises EngineUnreachable when none came until `deadline`."""
        done = current_runtime().new_signal()
        answers: list[EntryAnswer | EngineUnreachable] = []

        def hear(answer: EntryAnswer | EngineUnreachable) -> None:
            answers.append(answer)
            done.set()

        waiting = self.submit_soon(entry, deadline, hear)
        try:
            while not answers:
                # While it is served the sender keeps the deadline: it may have the entry on the wire at that moment.
                was_woken = await done.wait(deadline if self._arrived is None else None)
                if not was_woken and self._arrived is None:
                    raise EngineUnreachable("Checkpoints are not being sent: CheckpointSender.serve() is not running.")
        finally:
            waiting.is_settled = True
        if isinstance(answers[0], EngineUnreachable):
            raise answers[0]
        return answers[0]

    def _take_group(self) -> "list[_Waiting]":
        """The next entries that may travel together; what does not fit stays in the queue, in order."""
        group: list[_Waiting] = []
        size_bytes = 0
        left: list[_Waiting] = []
        queue, on_the_wire = self._queue, self._on_the_wire
        while queue:
            waiting = queue.popleft()
            if waiting.is_settled:
                continue
            if group and (len(group) >= ENTRIES_MAX or size_bytes + len(waiting.body) > MESSAGE_BYTES_MAX):
                left.append(waiting)
                break
            if waiting.run_id in on_the_wire:
                left.append(waiting)
                continue
            group.append(waiting)
            on_the_wire[waiting.run_id] = waiting
            size_bytes += len(waiting.body) + 1
        queue.extendleft(reversed(left))
        return group

    async def _send(self, group: "list[_Waiting]") -> None:
        """Send until there is an answer for each of the group, or its deadline has passed."""
        pause_seconds = PAUSE_SECONDS_MIN
        while group := [waiting for waiting in group if not waiting.is_settled]:
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
            group[0].settle(EntryAnswer(group[0].run_id, group[0].generation, "refused", error=error))
        else:
            # One entry spoils the message. Each on its own finds it and lets the others through.
            for waiting in group:
                await self._send([waiting])

    def _message(self, group: "list[_Waiting]") -> bytes:
        return self._head + b",".join([waiting.body for waiting in group]) + b"]}"


class _Waiting:
    """An entry as it travels, and who waits for the answer. `is_settled`: it has its answer, or nobody wants one."""

    __slots__ = ("body", "deadline", "generation", "is_settled", "on_answer", "run_id")

    def __init__(self, entry: CheckpointEntry, deadline: float, on_answer: OnAnswer) -> None:
        self.run_id = entry.run_id
        self.generation = entry.generation
        self.body = encode(entry)
        self.deadline = deadline
        self.on_answer = on_answer
        self.is_settled = False

    def settle(self, answer: EntryAnswer | EngineUnreachable) -> None:
        if self.is_settled:
            return
        self.is_settled = True
        try:
            self.on_answer(answer)
        except Exception:  # it must not keep the others from their answers
            logger.exception("run %s: what follows the answer to its checkpoint broke", self.run_id)

    def fail(self, why: str) -> None:
        self.settle(EngineUnreachable(why))


def _hand_out(group: list[_Waiting], raw: bytes) -> None:
    """Give each entry its answer. WireFault when the message is none, or lacks one."""
    found = decode_checkpoint_answer(raw).entries
    # The engine keeps the order of the entries; another order costs a table.
    if len(found) != len(group) or any(
        answer.run_id != waiting.run_id or answer.generation != waiting.generation
        for answer, waiting in zip(found, group, strict=True)
    ):
        answers = {(answer.run_id, answer.generation): answer for answer in found}
        missing = [waiting for waiting in group if (waiting.run_id, waiting.generation) not in answers]
        if missing:
            raise WireFault(f"The engine's answer says nothing of the run {missing[0].run_id}.")
        found = [answers[waiting.run_id, waiting.generation] for waiting in group]
    for waiting, answer in zip(group, found, strict=True):
        waiting.settle(answer)


def _drop_overdue(group: list[_Waiting], pause_seconds: float, why: str) -> list[_Waiting]:
    now = time.monotonic()
    for waiting in group:
        if now + pause_seconds >= waiting.deadline:
            waiting.fail(f"No checkpoint came through before the lease's end. {why}")
    return [waiting for waiting in group if not waiting.is_settled]
