"""A run with many large results goes on after a wait: the bytes that its next invocation moves, and the time until it waits again.

Twice: in the process that made the results, and in one that has just been started. The app awaits every result, so each has to be there.
A TCP proxy between engine and app counts, as for the long run.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from benchmarks.bench_failed import BenchFailed
from benchmarks.bench_system import BenchSystem, open_system
from benchmarks.database_eye import DatabaseEye
from benchmarks.lean_client import new_events
from benchmarks.sizes import Sizes

RESULT_BYTES = 100 << 10
# The engine asks a found app again every 3 s: then it knows the new process.
SETTLE_SECONDS = 4.0
REST_SECONDS_MAX = 180.0

# Whether the run stands still at this wait or has ended, and what its invocations since a generation took.
READ_REST = """
SELECT EXISTS (SELECT FROM live_run JOIN wait USING (run_id)
                WHERE run_id = $1::text::uuid AND live_run.state = 'waiting' AND wait.step_id = $2) AS is_waiting,
       (SELECT status FROM run_end WHERE run_id = $1::text::uuid) AS status,
       (SELECT error FROM run_end WHERE run_id = $1::text::uuid) AS error"""
READ_INVOCATIONS = """
SELECT count(*) AS count, max(generation) AS last, min(leased_at) AS since, max(ended_at) AS until
  FROM invocation WHERE run_id = $1::text::uuid AND generation > $2"""


def measure(sizes: Sizes) -> dict[str, float]:
    """MiB and seconds for making the results and for each replay."""
    numbers: dict[str, float] = {
        "replay.results": sizes.replay_results,
        "replay.results_mib": sizes.replay_results * RESULT_BYTES / (1 << 20),
    }
    with open_system(is_counted=True) as system, system.open_eye() as eye:
        connection = system.connect()
        wanted = b'{"results":%d,"result_bytes":%d}' % (sizes.replay_results, RESULT_BYTES)
        wide = WideRun(system, eye, connection.send_events(new_events("wide.wanted", 1, wanted))[0].runs[0].run_id)
        numbers |= {f"replay.made.{name}": value for name, value in wide.wait_rest("first").items()}
        connection.send_events(new_events("wide.first", 1))
        numbers |= {f"replay.same_process.{name}": value for name, value in wide.wait_rest("second").items()}
        system.stop("app")
        system.start_app()
        time.sleep(SETTLE_SECONDS)
        connection.send_events(new_events("wide.second", 1))
        numbers |= {f"replay.fresh_process.{name}": value for name, value in wide.wait_rest(None).items()}
        connection.close()
    return numbers


@dataclass
class WideRun:
    """The run, and up to which generation it was looked at."""

    system: BenchSystem
    eye: DatabaseEye
    run_id: str
    generation: int = 0

    def wait_rest(self, step_id: str | None) -> dict[str, float]:
        """Wait until the run waits in this step (None: has ended); what its new invocations took, from their lease to their end."""
        what = f"the wide run waits in {step_id}" if step_id else "the wide run has ended"
        self.system.wait_until(what, lambda: self._is_at(step_id), REST_SECONDS_MAX)
        found = self.eye.row(READ_INVOCATIONS, self.run_id, self.generation)
        self.generation = found["last"]
        since, until = found["since"].timestamp(), found["until"].timestamp()
        moved_bytes = self.system.counts().between(since, until)
        return {"invocations": found["count"], "seconds": until - since, "mib": moved_bytes / (1 << 20)}

    def _is_at(self, step_id: str | None) -> bool:
        rest = self.eye.row(READ_REST, self.run_id, step_id)
        if rest["status"] not in (None, "completed") or (rest["status"] and step_id):
            raise BenchFailed(f"The wide run has {rest['status']} where it was to go on: {rest['error']}")
        return bool(rest["is_waiting"] if step_id else rest["status"])
