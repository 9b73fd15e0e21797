"""Values that travel by reference: fetches those of a memo when they are needed, stores large results before their steps.

Owns the questions that are open on one loop, each asked once however many wait for it, and a cache of the process, bounded in
bytes. A value behind a reference never changes, so nothing in the cache can be out of date. Never looks into a value.
"""

import copy
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

import anyio
from msgspec import Raw

from durable.errors import EngineUnreachable, Refused
from durable.wire import Values as ValuesMessage
from durable.wire import Workspace
from durable.wire_codec import WireFault, decode_values_answer, encode

CACHE_BYTES_MAX: Final = 64 << 20
REFS_PER_MESSAGE_MAX: Final = 1_000
# Larger messages would hold up the checkpoints of other runs for longer than they save.
STORE_BYTES_MAX: Final = 8 << 20

Call = Callable[[str, bytes, str], Awaitable[bytes]]
"""`call(path, body, type)`: send a signed message, again while the engine is away; the verified answer, or an error."""

Start = Callable[..., None]
"""`start(run, *arguments)`: run it as a task that reports its own errors."""


class Values(Protocol):
    """Where the executor gets and puts large values. EngineUnreachable, Refused and WireFault say that it can not."""

    async def fetch(self, run_id: str, refs: list[str]) -> dict[str, Raw]:
        """The values behind these references of the run's memo, all of them."""
        ...

    async def store(self, run_id: str, data: Raw) -> str:
        """Keep a value for a step of the run; the reference that the step's op then has."""
        ...

    def known_as(self, run_id: str, stored_ref: str, ref: str) -> None:
        """What was stored as `stored_ref` is in the run's memo now, as `ref`."""
        ...


class ValueCache:
    """Values by run and reference; those that were used least recently go first. Safe to use from any thread."""

    def __init__(self, bytes_max: int = CACHE_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._size_bytes = 0
        self._values: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    def get(self, run_id: str, ref: str) -> bytes | None:
        with self._lock:
            data = self._values.get((run_id, ref))
            if data is not None:
                self._values.move_to_end((run_id, ref))
            return data

    def pop(self, run_id: str, ref: str) -> bytes | None:
        with self._lock:
            data = self._values.pop((run_id, ref), None)
            self._size_bytes -= len(data or b"")
            return data

    def put(self, run_id: str, ref: str, data: bytes) -> None:
        if len(data) > self._bytes_max:
            return
        with self._lock:
            former = self._values.pop((run_id, ref), b"")
            self._values[run_id, ref] = data
            self._size_bytes += len(data) - len(former)
            while self._size_bytes > self._bytes_max:
                _, dropped = self._values.popitem(last=False)
                self._size_bytes -= len(dropped)


class EngineValues:
    """Values of one loop's runs. What is asked for while a question of the same run is open goes together into the next.

    Every method runs on the loop; `start` makes the tasks that ask, so that a caller who leaves takes nothing from the others.
    """

    def __init__(self, call: Call, workspace: Workspace, start: Start, cache: ValueCache) -> None:
        self._call = call
        self._workspace = workspace
        self._start = start
        self._cache = cache
        self._fetches: dict[str, _Fetches] = {}
        self._stores: dict[str, list[_Asked]] = {}

    def known_as(self, run_id: str, stored_ref: str, ref: str) -> None:
        """See `Values.known_as`. A replay in this process then fetches nothing that was made here."""
        data = self._cache.pop(run_id, stored_ref)
        if data is not None:
            self._cache.put(run_id, ref, data)

    async def fetch(self, run_id: str, refs: list[str]) -> dict[str, Raw]:
        """See `Values.fetch`."""
        found: dict[str, Raw] = {}
        asked: dict[str, _Asked] = {}
        for ref in refs:
            cached = self._cache.get(run_id, ref)
            if cached is None:
                asked[ref] = self._ask(run_id, ref)
            else:
                found[ref] = Raw(cached)
        for ref, question in asked.items():
            found[ref] = Raw(await question.answer())
        return found

    async def store(self, run_id: str, data: Raw) -> str:
        """See `Values.store`."""
        question = _Asked(bytes(data))
        queue = self._stores.get(run_id)
        if queue is None:
            queue = self._stores[run_id] = []
            self._start(self._serve_stores, run_id, queue)
        queue.append(question)
        return (await question.answer()).decode()

    def _ask(self, run_id: str, ref: str) -> "_Asked":
        fetches = self._fetches.get(run_id)
        if fetches is None:
            fetches = self._fetches[run_id] = _Fetches()
            self._start(self._serve_fetches, run_id, fetches)
        question = fetches.asked.get(ref)
        if question is None:
            question = fetches.asked[ref] = _Asked()
            fetches.unsent.append(ref)
        return question

    async def _serve_fetches(self, run_id: str, fetches: "_Fetches") -> None:
        """Ask until every reference of the run has its answer."""
        try:
            while fetches.unsent:
                refs, fetches.unsent = fetches.unsent[:REFS_PER_MESSAGE_MAX], fetches.unsent[REFS_PER_MESSAGE_MAX:]
                await self._fetch_group(run_id, fetches, refs)
        finally:
            self._fetches.pop(run_id, None)
            for question in fetches.asked.values():
                question.fail(EngineUnreachable("The app stops serving."))

    async def _fetch_group(self, run_id: str, fetches: "_Fetches", refs: list[str]) -> None:
        try:
            raw = await self._call("/v1/values", encode(ValuesMessage(self._workspace, run_id, fetch=refs)), "values")
            values = {value.ref: bytes(value.data) for value in decode_values_answer(raw).values if value.ref in refs}
            if not values:
                raise WireFault("The engine's answer holds none of the values that it was asked for.")
        except Refused as refused:
            if len(refs) == 1 or not 400 <= refused.status < 500:
                fetches.fail(refs, refused)
            else:
                # One unknown reference spoils the message. Each on its own finds it and lets the others through.
                for ref in refs:
                    await self._fetch_group(run_id, fetches, [ref])
        except Exception as error:
            fetches.fail(refs, error)
        else:
            for ref, data in values.items():
                self._cache.put(run_id, ref, data)
                fetches.asked.pop(ref).succeed(data)
            # An answer holds what fits into one.
            fetches.unsent[:0] = [ref for ref in refs if ref not in values]

    async def _serve_stores(self, run_id: str, queue: "list[_Asked]") -> None:
        """Store until nothing waits."""
        group: list[_Asked] = []
        try:
            while queue:
                group = _take_stores(queue)
                try:
                    message = ValuesMessage(self._workspace, run_id, store=[Raw(question.data) for question in group])
                    refs = decode_values_answer(await self._call("/v1/values", encode(message), "values")).refs
                    if len(refs) != len(group):
                        raise WireFault(f"The engine gave {len(refs)} references for {len(group)} values.")
                except Exception as error:
                    for question in group:
                        question.fail(error)
                else:
                    for question, ref in zip(group, refs, strict=True):
                        self._cache.put(run_id, ref, question.data)
                        question.succeed(ref.encode())
        finally:
            self._stores.pop(run_id, None)
            for question in (*group, *queue):
                question.fail(EngineUnreachable("The app stops serving."))


@dataclass(slots=True, eq=False)
class _Asked:
    """A question, and what came of it. `data`: the value to store, then the answer."""

    data: bytes = b""
    error: Exception | None = None
    is_answered: bool = False
    done: anyio.Event = field(default_factory=anyio.Event)

    def succeed(self, data: bytes) -> None:
        self.data, self.is_answered = data, True
        self.done.set()

    def fail(self, error: Exception) -> None:
        if not self.is_answered:
            self.error, self.is_answered = error, True
            self.done.set()

    async def answer(self) -> bytes:
        await self.done.wait()
        if self.error is not None:
            raise copy.copy(self.error)  # a traceback of its own for each who waits
        return self.data


@dataclass(slots=True, eq=False)
class _Fetches:
    """The references of one run that were asked for, and those of them that are in no message yet."""

    asked: dict[str, _Asked] = field(default_factory=dict)
    unsent: list[str] = field(default_factory=list)

    def fail(self, refs: list[str], error: Exception) -> None:
        for ref in refs:
            self.asked.pop(ref).fail(error)


def _take_stores(queue: list[_Asked]) -> list[_Asked]:
    """Take the values that go into the next message, one at least, out of the queue."""
    count = size_bytes = 0
    for question in queue[:REFS_PER_MESSAGE_MAX]:
        size_bytes += len(question.data)
        if count and size_bytes > STORE_BYTES_MAX:
            break
        count += 1
    group = queue[:count]
    del queue[:count]
    return group
