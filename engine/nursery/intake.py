"""Takes runs in that were leased to this engine: counts them among those under way, and puts those that begin together into calls.

Places are reserved before a transaction that may lease runs, so that it never leases more than there is room for. It starts tasks only
through the nursery that it was opened with, and decides nothing about leases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import trio

from engine.core.outcome import HandedBack
from engine.nursery.call import Call
from engine.nursery.inflight import Inflight, InflightRuns
from engine.store.crash_points import crash_point
from engine.store.read_invocations import CALL_MARGIN_BYTES, Handover

# Beyond the step's own timeout, which the SDK enforces: the engine's clock only catches apps that do not.
STEP_TIMEOUT_MARGIN_SECONDS = 30.0


class Intake:
    """The way of every lease into the inflight nursery."""

    def __init__(self, inflight: InflightRuns) -> None:
        self._inflight = inflight
        self._start_call: Callable[[Call], None] | None = None
        self._is_draining = False
        self._is_over = False

    def open(self, start_call: Callable[[Call], None]) -> None:
        """From now on there are places. `start_call` starts the task of a call, at once."""
        self._start_call = start_call

    def drain(self) -> None:
        """No places any more; what was leased meanwhile is still started."""
        self._is_draining = True

    def end(self) -> None:
        """The drain's deadline has come: end what is under way, and hand back at once what still comes."""
        self._is_draining = self._is_over = True
        for inflight in self._inflight:
            inflight.end("drain")

    def close(self) -> None:
        """The nursery has ended: a lease that still comes ends by itself, and another engine takes the run."""
        self._start_call = None

    def reserve(self, wanted: int) -> int:
        """Take up to `wanted` places; how many. Each must come back by `start` or `give_back`."""
        if self._start_call is None or self._is_draining:
            return 0
        places = min(wanted, self._inflight.room().runs_max)
        self._inflight.reserved += places
        return places

    def give_back(self, places: int) -> None:
        """Places that were reserved and are not needed."""
        if places:
            self._inflight.reserved -= places
            self._inflight.wake()

    def full_workspaces(self) -> list[int]:
        """Workspaces of which nothing may be leased now."""
        return self._inflight.room().full_workspaces

    def start(self, handovers: Sequence[Handover], claimed_at: float) -> None:
        """Start the invocations of leases, each in a reserved place. `claimed_at`: a time before their leases began."""
        if not handovers:
            return
        crash_point("handed_over_before_call")
        self._inflight.reserved -= len(handovers)
        if self._start_call is None:
            return
        for call in calls_of([self._take_up(handover, claimed_at) for handover in handovers], self._inflight):
            self._start_call(call)

    def _take_up(self, handover: Handover, claimed_at: float) -> Inflight:
        inflight = make_inflight(handover, claimed_at)
        pace = self._inflight.pace(inflight.workspace_id)
        if self._is_over or (pace.is_troubled and pace.room(trio.current_time()) == 0):
            inflight.settle(HandedBack())
        elif pace.is_away:
            pace.is_probing = inflight.is_probe = True
        self._inflight.add(inflight)
        return inflight


def make_inflight(handover: Handover, claimed_at: float) -> Inflight:
    """A lease as an invocation that is yet to begin."""
    return Inflight(
        handover,
        handover.config.step_timeout_seconds + STEP_TIMEOUT_MARGIN_SECONDS,
        claimed_at + handover.invocation.lease_seconds,
    )


def calls_of(inflights: Iterable[Inflight], runs: InflightRuns) -> list[Call]:
    """The calls in which invocations travel that begin together: what goes to one app in as few as the app and their size allow."""
    now = trio.current_time()
    calls: list[Call] = []
    open_groups: dict[tuple[int, str], tuple[list[Inflight], int]] = {}
    for inflight in inflights:
        handover = inflight.handover
        offer, size_bytes = handover.offer, handover.size_bytes
        # A run that was in a call that broke travels alone: if it is what breaks them, nobody else is in it, and it is known then.
        if (
            offer is None
            or offer.batch_max <= 1
            or handover.lease.interruptions
            or inflight.outcome is not None
            or runs.pace(inflight.workspace_id).gets_single_calls(now)
        ):
            calls.append(Call([inflight]))
            continue
        key = (inflight.workspace_id, offer.serve_url)
        group, group_bytes = open_groups.get(key, ([], CALL_MARGIN_BYTES))
        if group and (len(group) >= offer.batch_max or group_bytes + size_bytes > offer.max_body_bytes):
            calls.append(Call(group))
            group, group_bytes = [], CALL_MARGIN_BYTES
        group.append(inflight)
        open_groups[key] = (group, group_bytes + size_bytes)
    calls.extend(Call(group) for group, _ in open_groups.values())
    return calls
