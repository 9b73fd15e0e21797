"""The nursery tree of the engine. Nested by when a thing stops: leaving an inner block is one step of the shutdown.

support: signals, writers, heartbeat, neighbours — last, so that leases live and reports are written while runs finish;
inflight: the HTTP server and the calls with their invocations — finish, until the drain's deadline;
intake: dispatcher, lookout, timers, reaper, debts, pruner, app watch — first, at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import structlog
import trio

from engine.nursery.app_watch import serve_app_watch, serve_known_apps
from engine.nursery.context import EngineContext
from engine.nursery.debts import serve_backfill, serve_promotions
from engine.nursery.dispatcher import serve_dispatcher
from engine.nursery.heartbeat import serve_heartbeat
from engine.nursery.http_server import ASGIApp, serve_http
from engine.nursery.lookout import serve_lookout
from engine.nursery.neighbours import serve_listener, serve_notifier
from engine.nursery.pruner import serve_pruner
from engine.nursery.reaper import serve_reaper
from engine.nursery.run_call import start_call
from engine.nursery.signals import serve_signals
from engine.nursery.task_tree import name_nursery
from engine.nursery.timers import serve_timers
from engine.store.crash_points import crash_point
from protocol.manifest import Workspace

log = structlog.get_logger(__name__)

# More than the HTTP server gives the requests that are under way.
CLOSING_SECONDS_MAX = 7.0


async def run_engine(
    engine: EngineContext,
    api: ASGIApp,
    host: str,
    port: int,
    watched: Sequence[tuple[str, Workspace]],
    announce: Callable[[str], None],
    on_listening: Callable[[str], None],
) -> None:
    """Run until drained. A service that crashes takes the tree down; a lost database does not."""
    async with trio.open_nursery() as support:
        name_nursery(support, "support")
        closing = trio.Event()
        await support.start(serve_signals, engine.draining.set, support.cancel_scope.cancel)
        await support.start(engine.events.serve, name="writer of events")
        await support.start(engine.reports.serve, name="writer of reports")
        await support.start(serve_heartbeat, engine)
        await support.start(serve_notifier, engine)
        await support.start(serve_listener, engine)
        async with trio.open_nursery() as inflight:
            name_nursery(inflight, "inflight")
            engine.inflight.on_room = engine.hints.run_due.give
            engine.intake.open(lambda call: start_call(engine, inflight, call))
            binds = await inflight.start(serve_http, api, host, port, closing)
            on_listening(binds[0])
            async with trio.open_nursery() as intake:
                name_nursery(intake, "intake")
                await intake.start(serve_dispatcher, engine)
                await intake.start(serve_lookout, engine)
                await intake.start(serve_timers, engine)
                await intake.start(serve_reaper, engine)
                await intake.start(serve_promotions, engine)
                await intake.start(serve_backfill, engine)
                await intake.start(serve_pruner, engine)
                await intake.start(serve_known_apps, engine)
                for url, workspace in watched:
                    intake.start_soon(serve_app_watch, engine, url, workspace, announce, name=f"app watch {url}")
                await engine.draining.wait()
                engine.intake.drain()
                engine.hints.drain_begins()
                crash_point("drain_started")
                intake.cancel_scope.cancel()
            await finish_inflight(engine)
            closing.set()
            # Whatever still stands here (a report that waits for a lost database) must not hold the shutdown; its lease ends.
            inflight.cancel_scope.deadline = trio.current_time() + CLOSING_SECONDS_MAX
        engine.intake.close()
        support.cancel_scope.cancel()


async def finish_inflight(engine: EngineContext) -> None:
    """Let the invocations end; at the deadline give the rest back, so that others take them at once."""
    log.info("draining", in_flight=len(engine.inflight), seconds_max=engine.limits.drain_seconds)
    with trio.move_on_after(engine.limits.drain_seconds):
        await engine.inflight.wait_empty()
    engine.intake.end()
    with trio.move_on_after(5):
        await engine.inflight.wait_empty()
