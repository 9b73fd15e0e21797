"""The long poll by which an app keeps the leases of the runs that it executes, and hears what came to them from outside.

It is answered at once with what the app must know (a run is cancelled, is not its run any more, or has memo entries that it does not
know), else when its time is over, when a newer poll of the same process came, or when the engine drains.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Final
from uuid import UUID

import trio

from engine.api.alive_polls import PollTurn
from engine.api.authenticate import Caller
from engine.api.services import Services
from engine.store.crash_points import crash_point
from engine.store.hints import Hint
from engine.store.keep_alive import HeldRun, KeptLease, RunNews, find_run_news, keep_alive, read_run_news
from engine.store.sql import Connection
from protocol.calls import MemoEntry
from protocol.messages import decode_alive
from protocol.requests import Alive, AliveAnswer, AliveRun, AliveRunAnswer

# What a body may take beyond its timeout until its end is reported.
OPEN_MARGIN_SECONDS: Final = 2.0
# A lost hint costs at most this. Hints of other engines name no runs: under their load a poll looks this often and no oftener.
LOOK_SECONDS: Final = 1.5
LOOK_SECONDS_MIN: Final = 0.05


async def alive(services: Services, caller: Caller, body: bytes) -> AliveAnswer:
    """Renew the leases of the runs that the app names, and wait for news of them."""
    message = decode_alive(body)
    caller.require(message.workspace)
    poll = _Poll(services, caller.workspace_id, message)
    with (
        services.hints.watch_news(poll.run_ids) as hint,
        services.alive_polls.newest(caller.workspace_id, message.process, hint) as turn,
    ):
        return await poll.answer(hint, turn)


class _Poll:
    """One poll. `_looked` is what the looks ask about: without the runs whose end the app reported, and beyond its own steps."""

    def __init__(self, services: Services, workspace_id: int, message: Alive) -> None:
        self._services = services
        self._workspace_id = workspace_id
        # With the id as the store has it: made once, since a poll has many.
        self._asked = [(UUID(run.run_id), run) for run in message.runs]
        self._received_at = trio.current_time()
        self._deadline = self._received_at + message.wait_seconds
        self._looked = {run.run_id: run for run in self._held(self._received_at)}
        self._kept: dict[UUID, KeptLease] = {}
        self._kept_at = -math.inf

    @property
    def run_ids(self) -> list[UUID]:
        return list(self._looked)

    async def answer(self, hint: Hint, turn: PollTurn) -> AliveAnswer:
        """Renew, look and wait in turns, until there is something to say or the poll is over."""
        while True:
            looked_at = trio.current_time()
            is_renewal_due = looked_at >= self._kept_at + self._services.lease_seconds / 3
            news = await (self._renew() if is_renewal_due else self._look())
            if news.is_for_app:
                return await self._tell(news)
            if await self._is_over(hint, turn, looked_at):
                return self._answers({}, news)

    async def _is_over(self, hint: Hint, turn: PollTurn, looked_at: float) -> bool:
        """Wait until it is time to look again; whether the poll is to be answered instead."""
        look_at = looked_at + min(LOOK_SECONDS, self._services.lease_seconds / 3)
        while True:
            now = trio.current_time()
            if now >= self._deadline or turn.is_over or self._services.is_draining():
                return True
            if now >= look_at:
                return False
            with trio.move_on_at(min(self._deadline, look_at)):
                await hint.wait()
                look_at = min(look_at, max(looked_at + LOOK_SECONDS_MIN, now))

    async def _renew(self) -> RunNews:
        """Renew the leases, and look. Also those of runs about which no look asks any more: only the commit says what is held."""
        asked_at = trio.current_time()
        held = self._held(asked_at)
        self._kept, news = await self._services.transact(
            _keep_alive_and_look, self._workspace_id, held, list(self._looked.values()), self._services.lease_seconds
        )
        # The leases began before the commit, which may have taken long: from here they count a little too short, and never too long.
        self._kept_at = asked_at
        passed_seconds = trio.current_time() - asked_at
        crash_point("alive_renewed_before_answer")
        for run_id, kept in self._kept.items():
            if not kept.is_cancelled:
                self._services.on_alive(run_id, kept.lease_seconds - passed_seconds)
        return self._narrowed(news)

    async def _look(self) -> RunNews:
        return self._narrowed(await self._services.database.read(find_run_news, self._workspace_id, list(self._looked.values())))

    def _narrowed(self, news: RunNews) -> RunNews:
        """Leave what the app knows by itself out of the next looks."""
        for run_id in news.over:
            del self._looked[run_id]
            self._kept.pop(run_id, None)
        for run_id, position in news.own.items():
            self._looked[run_id] = replace(self._looked[run_id], known=position)
        return news

    async def _tell(self, news: RunNews) -> AliveAnswer:
        resolved: dict[UUID, list[MemoEntry]] = {}
        if news.resolved:
            runs = [run for run in self._held(trio.current_time()) if run.run_id in news.resolved]
            resolved = await self._services.database.read(read_run_news, self._workspace_id, runs)
        return self._answers(resolved, news)

    def _answers(self, resolved: dict[UUID, list[MemoEntry]], news: RunNews) -> AliveAnswer:
        passed_seconds = trio.current_time() - self._kept_at
        return AliveAnswer([self._run_answer(run_id, run, resolved, news, passed_seconds) for run_id, run in self._asked])

    def _run_answer(
        self, run_id: UUID, run: AliveRun, resolved: dict[UUID, list[MemoEntry]], news: RunNews, passed_seconds: float
    ) -> AliveRunAnswer:
        kept = self._kept.get(run_id)
        if run_id in news.cancelled or (kept is not None and kept.is_cancelled):
            return AliveRunAnswer(run.run_id, run.generation, "cancelled")
        if run_id in news.stale or kept is None:
            return AliveRunAnswer(run.run_id, run.generation, "stale")
        lease_seconds = max(kept.lease_seconds - passed_seconds, 0.0)
        return AliveRunAnswer(run.run_id, run.generation, "ok", lease_seconds, resolved.get(run_id, []))

    def _held(self, now: float) -> Sequence[HeldRun]:
        passed_seconds = now - self._received_at
        return [
            HeldRun(
                run_id,
                run.generation,
                run.known,
                run.open_seconds + OPEN_MARGIN_SECONDS - passed_seconds if run.open_seconds > 0 else None,
            )
            for run_id, run in self._asked
        ]


async def _keep_alive_and_look(
    conn: Connection, workspace_id: int, held: Sequence[HeldRun], looked: Sequence[HeldRun], lease_seconds: float
) -> tuple[dict[UUID, KeptLease], RunNews]:
    kept = await keep_alive(conn, workspace_id, held, lease_seconds)
    return kept, await find_run_news(conn, workspace_id, looked)
