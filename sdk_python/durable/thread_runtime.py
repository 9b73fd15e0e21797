"""Threads: workers for sync bodies, and the host of sync handlers, which runs each in a thread of its own.

Owns the worker threads of the process. A thread can not be stopped from outside: one that is given up goes on to
its end and nobody hears its result. Threads are daemons, so that a stuck body does not hold the end of the process.
A sync handler is idle when each of its threads that has called a step is in a step again, has ended, or waits in the
standard library for another thread; that last is found by looking at the threads' frames, a few times in a row.
"""

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from types import FrameType
from typing import Any, Final

from durable.errors import Parked
from durable.runtime import Outcome, Scope, Signal, is_parked
from durable.sync_step import SyncStep

logger: Final = logging.getLogger("durable")

BODIES_AT_ONCE_MAX: Final = 64
"""Sync bodies that run at the same time in this process; more wait for a free thread."""

IDLE_THREAD_SECONDS: Final = 10.0
QUIET_LOOKS: Final = 3
LOOK_SECONDS: Final = 0.003
UNWIND_SECONDS_MAX: Final = 10.0


class ThreadJob:
    """A call in a worker thread. `hear` gets its outcome in that thread, unless it was given up before."""

    __slots__ = ("call", "context", "hear", "is_given_up", "is_started")

    def __init__(self, call: Callable[[], Any], hear: Callable[[Outcome], None], context: Context) -> None:
        self.call = call
        self.hear = hear
        self.context = context
        self.is_started = False
        self.is_given_up = False

    def run(self) -> None:
        try:
            outcome = Outcome(value=self.context.run(self.call))
        except BaseException as error:
            outcome = Outcome(error=error)
        if not self.is_given_up:
            self.hear(outcome)


class WorkerThreads:
    """Threads that run jobs and are kept for the next; at most `at_once_max` jobs run, the rest waits in line."""

    def __init__(self, name: str, at_once_max: float = float("inf")) -> None:
        self._name = name
        self._at_once_max = at_once_max
        self._running_count = 0
        self._waiting: deque[_StartedJob] = deque()
        self._idle: list[_Worker] = []
        self._lock = threading.Lock()

    def start(self, call: Callable[[], Any], hear: Callable[[Outcome], None], context: Context) -> "_StartedJob":
        job = _StartedJob(self, ThreadJob(call, hear, context))
        with self._lock:
            if self._running_count >= self._at_once_max:
                self._waiting.append(job)
                return job
            self._running_count += 1
            job.is_started = True
        self._hand_over(job)
        return job

    def _hand_over(self, job: "_StartedJob") -> None:
        with self._lock:
            worker = self._idle.pop() if self._idle else None
        if worker is None:
            worker = _Worker(self)
            threading.Thread(target=worker.work, name=self._name, daemon=True).start()
        worker.give(job)

    def ended(self, job: "_StartedJob") -> None:
        """A job is over, or was given up and no longer counts: start the next in line."""
        with self._lock:
            if job.is_counted_out:
                return
            job.is_counted_out = True
            following = None
            while self._waiting and following is None:
                candidate = self._waiting.popleft()
                following = None if candidate.job.is_given_up else candidate
            if following is None:
                self._running_count -= 1
            else:
                following.is_started = True
        if following is not None:
            self._hand_over(following)

    def keep(self, worker: "_Worker") -> None:
        with self._lock:
            self._idle.append(worker)

    def let_go(self, worker: "_Worker") -> bool:
        """Whether an idle worker may end; not when a job was just given to it."""
        with self._lock:
            if worker in self._idle:
                self._idle.remove(worker)
                return True
            return False


class _StartedJob:
    """A job and its place in the count of running ones."""

    __slots__ = ("is_counted_out", "is_started", "job", "workers")

    def __init__(self, workers: WorkerThreads, job: ThreadJob) -> None:
        self.workers = workers
        self.job = job
        self.is_started = False
        self.is_counted_out = False

    def give_up(self) -> None:
        """Nobody hears the outcome any more. Its place is free at once: stuck bodies must not starve the others."""
        self.job.is_given_up = True
        if self.is_started:
            self.workers.ended(self)


class _Worker:
    """One thread's loop: wait for a job, run it, wait again, end after a while without work."""

    def __init__(self, workers: WorkerThreads) -> None:
        self._workers = workers
        self._given: _StartedJob | None = None
        self._wake = threading.Semaphore(0)

    def give(self, job: _StartedJob) -> None:
        self._given = job
        self._wake.release()

    def work(self) -> None:
        while True:
            if not self._wake.acquire(timeout=IDLE_THREAD_SECONDS):
                if self._workers.let_go(self):
                    return
                continue
            started, self._given = self._given, None
            assert started is not None
            if not started.job.is_given_up:
                started.job.run()
            # First free the worker, then the place: else the next job would start one more thread.
            self._workers.keep(self)
            self._workers.ended(started)
            del started


bodies: Final = WorkerThreads("durable-body", BODIES_AT_ONCE_MAX)
# Handlers have no limit here: they wait for bodies, and a common limit could leave no thread for a body.
handlers: Final = WorkerThreads("durable-handler")


class ThreadHost:
    """A sync handler in a thread. Its state is touched on the loop only; threads send their calls there."""

    def __init__(self, scope: Scope, execution: Any) -> None:
        self.outcome: Outcome | None = None
        self._scope = scope
        self._execution = execution
        self._signal: Signal | None = None
        self._ended = scope.new_signal()
        self._replies: dict[Any, ThreadReply] = {}
        # Idents of the handler's threads that are not in a step now.
        self._outside: set[int] = set()
        # Counts what the threads do; looks at their frames only say something while it stays the same.
        self._moves = 0
        self._looked_at_move = 0
        self._quiet_looks = 0

    def start(self, signal: Signal, context: Context) -> None:
        self._signal = signal
        handlers.start(self._run, self._ended_in_thread, context)
        self._outside.add(0)  # the main thread until its first call tells its ident

    def _run(self) -> Any:
        self._scope.call_from_thread(self._main_started, threading.get_ident())
        return self._execution.function.handler(self._execution.event, SyncStep(self._execution, self))

    def _main_started(self, ident: int) -> None:
        self._outside.discard(0)
        self._outside.add(ident)

    def _ended_in_thread(self, outcome: Outcome) -> None:
        self._scope.call_from_thread(self._end, outcome)

    def _end(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self._ended.set()
        assert self._signal is not None
        self._signal.set()

    def wait_for_step(self, open_step: Callable[[], Any]) -> Any:
        """Call a step and wait for its result; runs in a thread of the handler."""
        reply = ThreadReply(self, threading.get_ident())
        context = copy_context()
        if not self._scope.call_from_thread(self._call_step, open_step, reply, context):
            raise Parked()  # the process is on its way out; only the thread is left of this invocation
        outcome = reply.wait()
        if outcome.error is not None:
            raise outcome.error
        return outcome.value

    def _call_step(self, open_step: Callable[[], Any], reply: "ThreadReply", context: Context) -> None:
        self._moves += 1
        try:
            step = context.run(open_step)
        except BaseException as error:
            reply.hand_over(Outcome(error=error))
            return
        self._outside.discard(reply.ident)
        step.reply = reply
        self._replies[reply] = step
        assert self._signal is not None
        self._signal.set()

    def delivered(self, reply: "ThreadReply", outcome: Outcome) -> None:
        """A step of one of the handler's threads has its result: that thread runs again."""
        self._replies.pop(reply, None)
        self._moves += 1
        self._outside.add(reply.ident)
        reply.hand_over(outcome)

    def is_idle(self) -> bool:
        return self.outcome is not None or not self._outside

    async def until_idle(self, until: float | None) -> bool:
        assert self._signal is not None
        if self.is_idle():
            return True
        if not self._replies:
            await self._signal.wait(None)
        else:
            # Some threads are in steps, others are not: those wait for the former, or are still at work.
            if self._moves != self._looked_at_move:
                self._looked_at_move, self._quiet_looks = self._moves, 0
            if self._quiet_looks >= QUIET_LOOKS:
                return True
            self._quiet_looks = self._quiet_looks + 1 if self._all_outside_wait() else 0
            await self._signal.wait(time.monotonic() + LOOK_SECONDS)
        return self.is_idle()

    def _all_outside_wait(self) -> bool:
        frames = sys._current_frames()
        alive = {ident for ident in self._outside if ident in frames}
        self._outside &= alive | {0}
        return 0 not in self._outside and all(_waits_for_a_thread(frames[ident]) for ident in alive)

    def outside_waits(self) -> list[str]:
        return []  # a thread that waits elsewhere is not idle, so the end is never held up by one

    def stop(self) -> None:
        for reply in list(self._replies):
            self.delivered(reply, Outcome(error=Parked()))

    async def unwind(self) -> bool:
        was_over = self.outcome is not None
        self.stop()
        give_up_at = time.monotonic() + UNWIND_SECONDS_MAX
        while self.outcome is None and time.monotonic() < give_up_at:
            await self._ended.wait(give_up_at)
        if self.outcome is None:
            logger.warning(
                "function %s: its thread is still at work %.0f s after the end of the invocation and is left to itself",
                self._execution.function.id, UNWIND_SECONDS_MAX,
            )  # fmt: skip
            return True
        return was_over or is_parked(self.outcome)


class ThreadReply:
    """Where a thread of the handler blocks until its step has a result."""

    def __init__(self, host: ThreadHost, ident: int) -> None:
        self.ident = ident
        self._host = host
        self._outcome: Outcome | None = None
        self._given = threading.Lock()
        self._given.acquire()

    def deliver(self, outcome: Outcome) -> None:
        self._host.delivered(self, outcome)

    def hand_over(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self._given.release()

    def wait(self) -> Outcome:
        self._given.acquire()
        assert self._outcome is not None
        return self._outcome


def _waits_for_a_thread(frame: FrameType) -> bool:
    path = frame.f_code.co_filename.replace("\\", "/")
    return path.endswith(("/threading.py", "/queue.py")) or "/concurrent/futures/" in path
