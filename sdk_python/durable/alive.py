"""Keeps the leases of the runs that this process executes, by one long poll to the engine, from a thread of its own.

The thread is there so that a handler that blocks its event loop keeps its leases, while a process that died loses them. It
begins with the first invocation, asks only about those older than OLD_SECONDS, and ends when none is left. It changes nothing of
a run: what the engine says is handed over to the run's own loop.
"""

import logging
import os
import secrets
import selectors
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

from msgspec import UNSET
from msgspec.structs import replace

from durable.errors import ConfigurationError, EngineUnreachable, Refused
from durable.http_exchange import Address, ConnectionWasClosed, ExchangeFailed, Reply
from durable.keys import Settings
from durable.signed_requests import SignedRequest, read_answer, sign_request
from durable.sync_connections import SyncConnection
from durable.wire import Alive, AliveRun, AliveRunAnswer
from durable.wire_codec import WireFault, decode_alive_answer, encode

logger: Final = logging.getLogger("durable")

# Younger invocations are not worth a message: most are over before it would be read.
OLD_SECONDS: Final = 0.25
WAIT_SECONDS_MAX: Final = 20.0
RUNS_MAX: Final = 10_000
# However fast invocations come and go, polls do not follow each other faster.
BETWEEN_SECONDS_MIN: Final = 0.5
# An answer that is this much overdue does not come any more.
OVERDUE_SECONDS: Final = 10.0
# How long the thread stays without an invocation: starting another one costs more than its looks.
LINGER_SECONDS: Final = 5.0
PAUSE_SECONDS_MIN: Final = 0.5
PAUSE_SECONDS_MAX: Final = 5.0
REFUSED_PAUSE_SECONDS: Final = 30.0
# An engine that does not know the message extends the leases by itself. It may be updated meanwhile.
UNKNOWN_PAUSE_SECONDS: Final = 600.0
_BLOCKED_SECONDS_MAX: Final = 5.0


class LiveRun(Protocol):
    """An invocation under way."""

    def alive_run(self, now: float) -> AliveRun:
        """What to tell of it at this monotonic instant. Called from the thread, also while the run's loop is blocked."""
        ...

    def take_alive(self, answer: AliveRunAnswer) -> None:
        """What the engine says of it. Called on the run's loop; `lease_seconds` counts from this call."""
        ...


CallSoon = Callable[..., object]
"""`call_soon(call, *arguments)`: call it on the loop, from any thread. RuntimeError when the loop is gone."""


@dataclass(slots=True, eq=False)
class HeldRun:
    """A run that the thread keeps alive. `known` is what the engine told it, which its loop may not have heard yet."""

    run: LiveRun
    lease_seconds: float
    call_soon: CallSoon
    started_at: float
    known: int = 0
    is_over: bool = False


class AliveKeeper:
    """The polls of one app in this process, whichever loops its invocations run on. Safe to use from any thread."""

    def __init__(self, read_settings: Callable[[], Settings]) -> None:
        self._read_settings = read_settings
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._held: dict[HeldRun, None] = {}
        self._thread: threading.Thread | None = None

    def hold(self, run: LiveRun, lease_seconds: float, call_soon: CallSoon) -> HeldRun:
        """Keep its lease until `release`."""
        held = HeldRun(run, lease_seconds, call_soon, time.monotonic())
        if self._pid != os.getpid():
            self._forget_parent()
        self._held[held] = None
        # Without the lock: the thread that ends takes its name away first and looks for runs after that.
        if self._thread is None:
            self._start()
        return held

    def release(self, held: HeldRun) -> None:
        self._held.pop(held, None)

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                thread = threading.Thread(target=self._keep, name="durable-alive", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:  # no thread can be had now; the next invocation tries again
                    logger.warning("leases are not kept beyond those of the calls: %s", error)
                else:
                    self._thread = thread

    def _forget_parent(self) -> None:
        """After a fork: the parent's runs and its thread are not here."""
        self._lock = threading.Lock()
        # In this order: another thread of the child may come next.
        self._held, self._thread, self._pid = {}, None, os.getpid()

    def _keep(self) -> None:
        polls = None
        used_at = time.monotonic()
        try:
            while True:
                try:
                    polls = polls or _Polls(self._read_settings)  # no file descriptor may be left for it
                    polls.look(list(self._held))
                except Exception:
                    logger.exception("the leases of this process could not be kept; it is tried again")
                    time.sleep(PAUSE_SECONDS_MAX)
                now = time.monotonic()
                if self._held:
                    used_at = now
                elif now - used_at >= LINGER_SECONDS and self._is_left():
                    return
        finally:
            if polls is not None:
                polls.close()

    def _is_left(self) -> bool:
        with self._lock:
            me, self._thread = self._thread, None
            if self._held:
                self._thread = me
            return self._thread is None


@dataclass(slots=True, eq=False)
class _Poll:
    """A question that is open."""

    settings: Settings
    request: SignedRequest
    connection: SyncConnection
    runs: dict[tuple[str, int], HeldRun]
    ends_at: float


class _Polls:
    """The thread's side: the open polls (the newest last), and when the next may be sent."""

    def __init__(self, read_settings: Callable[[], Settings]) -> None:
        self._read_settings = read_settings
        self._process = secrets.token_hex(8)
        self._selector = selectors.DefaultSelector()
        self._open: list[_Poll] = []
        self._spare: SyncConnection | None = None
        self._ask_at = 0.0
        self._failure_count = 0

    def look(self, held: list[HeldRun]) -> None:
        """Ask if there is a run to ask about, and hear what the engine says within a quarter of a second."""
        now = time.monotonic()
        old = [each for each in held if not each.is_over and now - each.started_at >= OLD_SECONDS]
        newest = set(self._open[-1].runs.values()) if self._open else set()
        if now >= self._ask_at and not newest.issuperset(old):
            try:
                self._ask(old, now)
            except (ExchangeFailed, ConfigurationError) as error:
                self._note_failure(error)
        for poll in self._wait():
            try:
                self._hear(poll)
            except (ExchangeFailed, EngineUnreachable, Refused, WireFault) as error:
                self._note_failure(error)

    def close(self) -> None:
        for poll in self._open:
            poll.connection.close()
        if self._spare is not None:
            self._spare.close()
        self._selector.close()

    def _ask(self, old: list[HeldRun], now: float) -> None:
        settings = self._read_settings()
        runs: dict[str, tuple[AliveRun, HeldRun]] = {}
        for held in old[-RUNS_MAX:]:
            run = held.run.alive_run(now)
            run = replace(run, known=max(run.known, held.known))
            # An older generation may still be unwinding beside the newer one; a message has one entry a run.
            if run.run_id not in runs or runs[run.run_id][0].generation < run.generation:
                runs[run.run_id] = run, held
        # A second answer comes before the lease as it is known here has ended.
        wait_seconds = min(WAIT_SECONDS_MAX, min(held.lease_seconds for held in old) / 2)
        message = Alive(settings.workspace, self._process, wait_seconds, [run for run, _ in runs.values()])
        body = encode(message)
        self._ask_at = now + BETWEEN_SECONDS_MIN
        request = sign_request(settings, body)
        connection, self._spare = self._spare, None
        if connection is None:
            connection = SyncConnection(Address.of(settings.url))
            connection.socket.settimeout(_BLOCKED_SECONDS_MAX)
        try:
            connection.send("POST", "/v1/alive", request.headers, body)
        except ExchangeFailed:
            connection.close()
            raise
        asked = {(run.run_id, run.generation): held for run, held in runs.values()}
        poll = _Poll(settings, request, connection, asked, now + wait_seconds + OVERDUE_SECONDS)
        self._open.append(poll)
        self._selector.register(connection.socket, selectors.EVENT_READ, poll)

    def _wait(self) -> list[_Poll]:
        """The polls that have something to read or are overdue."""
        if not self._open:
            time.sleep(OLD_SECONDS)
            return []
        ready = [key.data for key, _ in self._selector.select(OLD_SECONDS)]
        now = time.monotonic()
        return [*ready, *(poll for poll in self._open if poll.ends_at <= now and poll not in ready)]

    def _hear(self, poll: _Poll) -> None:
        is_kept = False
        try:
            if time.monotonic() >= poll.ends_at:
                raise ExchangeFailed("no answer came in time")
            reply = poll.connection.receive()
            if reply is None:
                # What TLS has decrypted already would make no socket readable.
                while reply is None and getattr(poll.connection.socket, "pending", int)():
                    reply = poll.connection.receive()
                if reply is None:
                    is_kept = True
                    return
            self._end(poll)
            self._keep_connection(poll.connection)
            is_kept = True
            self._take(poll, reply, time.monotonic())
        except ConnectionWasClosed:
            self._ask_at = 0.0  # at once, with a connection of its own
        finally:
            if not is_kept:
                self._end(poll)
                poll.connection.close()

    def _end(self, poll: _Poll) -> None:
        if poll in self._open:
            self._open.remove(poll)
            self._selector.unregister(poll.connection.socket)

    def _keep_connection(self, connection: SyncConnection) -> None:
        if connection.exchange.is_reusable and self._spare is None:
            connection.is_kept = True
            self._spare = connection
        else:
            connection.close()

    def _take(self, poll: _Poll, reply: Reply, received_at: float) -> None:
        """Hand what the engine says to the loops of the runs."""
        answer = decode_alive_answer(read_answer(poll.settings, poll.request, reply.status, reply.headers, reply.body))
        self._failure_count = 0
        news: dict[CallSoon, _News] = {}
        for run in answer.runs:
            held = poll.runs.get((run.run_id, run.generation))
            if held is None or held.is_over:
                continue
            held.is_over = run.status != "ok"
            held.known = max([held.known, *(entry.position for entry in run.resolved)])
            if held.call_soon not in news:
                news[held.call_soon] = _News(received_at)
            news[held.call_soon].answers.append((held.run, run))
        for call_soon, each in news.items():
            try:
                call_soon(each.tell)
            except RuntimeError as error:  # Trio's RunFinishedError is one too
                logger.debug("a loop has ended before it could hear of its runs: %r", error)

    def _note_failure(self, error: Exception) -> None:
        # Other words than the engine's come from what stands before it while it is away: a proxy without a route, for example.
        if isinstance(error, Refused) and not error.code.startswith("http_"):
            is_unknown = error.status in (404, 405)
            pause_seconds = UNKNOWN_PAUSE_SECONDS if is_unknown else REFUSED_PAUSE_SECONDS
            if not is_unknown:
                logger.warning("the engine refuses to keep the leases of this process: %s", error)
        else:
            pause_seconds = min(PAUSE_SECONDS_MIN * 2**self._failure_count, PAUSE_SECONDS_MAX)
            asked_seconds = error.retry_after_seconds if isinstance(error, EngineUnreachable) else None
            pause_seconds = max(pause_seconds, asked_seconds or 0.0)
            logger.info("the leases of this process could not be kept, it is tried again in %.1f s: %s", pause_seconds, error)
        self._failure_count = min(self._failure_count + 1, 10)
        self._ask_at = time.monotonic() + pause_seconds


@dataclass(slots=True)
class _News:
    """What one loop is told."""

    received_at: float
    answers: list[tuple[LiveRun, AliveRunAnswer]] = field(default_factory=list)

    def tell(self) -> None:
        # A loop that was blocked hears late: the leases have run since.
        passed_seconds = time.monotonic() - self.received_at
        for run, answer in self.answers:
            try:
                if answer.lease_seconds is not UNSET:
                    answer = replace(answer, lease_seconds=max(answer.lease_seconds - passed_seconds, 0.0))
                run.take_alive(answer)
            except Exception:  # on Trio it would end the whole loop
                logger.exception("run %s: what the engine said of it could not be taken", answer.run_id)
