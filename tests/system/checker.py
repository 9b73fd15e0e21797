"""Joins what was seen outside of the engine (the witness and the client's log) with the engine's tables, and says what is broken.

`check(system)` gives sentences, one for each broken invariant; an empty list is the proof. It changes nothing. `assert_sound` waits for
the end of all runs first, asks the engine's own audit too, and raises with all that was found.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tests.system.system import System
from tests.system.witness_app import app, digest_of, pages_of
from tests.system.witness_log import Line

# The witness and Postgres read one clock, but a line is dated after the body has begun.
CLOCK_SECONDS = 0.05

RUNS = """
SELECT run.run_id::text, function.name AS function, event.external_id, event.name AS event, event.data, run_end.status, run_end.output,
       run_end.generation AS end_generation, run_end.ended_at
  FROM run JOIN function USING (function_id) JOIN event USING (event_id) LEFT JOIN run_end USING (run_id)"""
STEPS = """
SELECT run_id::text, step_id, kind, position, data, error, is_abandoned, generation, attempt, planned_at, started_at, committed_at
  FROM step"""
# Each lease that was given out: those that have ended, and those of now.
LEASES = """
SELECT run_id::text, generation, leased_at, ended_at, outcome, detail FROM invocation
UNION ALL
SELECT run_id::text, generation, leased_at, NULL, state, NULL FROM live_run WHERE state IN ('leased', 'cancelled')"""
FAILED_ATTEMPTS = "SELECT run_id::text, step_id, generation, attempt, failed_at FROM step_attempt"
# Functions of the witness app whose output is their input.
ECHOING = ("three", "plain", "limited", "napping", "flaky", "blocking", "exiting")
# Event names, and the functions of the witness app that they trigger.
TRIGGERED: dict[str, list[str]] = {}
for _function in app.functions.values():
    for _trigger in _function.triggers:
        TRIGGERED.setdefault(_trigger.name, []).append(_function.id)
EVENTS = "SELECT event_id::text, external_id, name, data FROM event"


@dataclass
class Evidence:
    """All that is known, read once."""

    system: System
    lines: list[Line]
    acknowledged: list[dict[str, Any]]
    runs: dict[str, dict[str, Any]]
    steps: list[dict[str, Any]]
    leases: dict[str, dict[int, dict[str, Any]]]
    failed_attempts: list[dict[str, Any]]
    events: list[dict[str, Any]]
    frozen_starts: int = 0


def assert_sound(
    system: System, *, seconds: float = 60.0, number: int = 0, failed: Collection[str] = ("poison", "raw")
) -> Evidence:
    """Wait until all runs have ended, then check everything; runs of the functions `failed` may fail."""
    system.wait_all_ended(seconds)
    evidence = gather(system)
    broken = check(evidence) + list(only_these_failed(evidence, failed))
    audit = system.audit(number)
    if audit["count"]:
        broken.append(f"`durable audit` finds {audit['findings']}")
    assert not broken, f"{len(broken)} promises are broken:\n" + "\n".join(broken[:30])
    # Silence proves nothing when nothing happened.
    assert evidence.lines and evidence.runs, "No body has run; the scenario shows nothing."
    return evidence


def gather(system: System) -> Evidence:
    """Read everything. The tables after the witness: what a body wrote last may only be explained by a later row."""
    lines, acknowledged = system.witness(), system.acknowledged()
    leases: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for lease in system.query(LEASES):
        leases[lease["run_id"]][lease["generation"]] = lease
    return Evidence(
        system,
        lines,
        acknowledged,
        {run["run_id"]: run for run in system.query(RUNS)},
        system.query(STEPS),
        leases,
        system.query(FAILED_ATTEMPTS),
        system.query(EVENTS),
    )


def check(evidence: Evidence) -> list[str]:
    """A sentence for everything that must not be."""
    return [sentence for look in CHECKS for sentence in look(evidence)]


def no_acknowledged_event_is_lost(evidence: Evidence) -> Iterator[str]:
    stored = {event["external_id"] for event in evidence.events}
    for sent in evidence.acknowledged:
        if sent["id"] not in stored:
            yield f"1: the event {sent['id']} was acknowledged and is not there."
        for run_id in sent["runs"]:
            if run_id not in evidence.runs:
                yield f"1: the run {run_id} of the event {sent['id']} was acknowledged and is not there."


def every_event_starts_its_runs(evidence: Evidence) -> Iterator[str]:
    """An event that is stored has a run of each function that it triggers: an acknowledgement without one would be a loss, too."""
    started = {(run["external_id"], run["function"]) for run in evidence.runs.values()}
    for event in evidence.events:
        for function in TRIGGERED.get(event["name"], ()):
            if (event["external_id"], function) not in started:
                yield f"1: the event {event['external_id']} ({event['name']}) is stored and has started no run of {function}."


def no_body_starts_after_its_result(evidence: Evidence) -> Iterator[str]:
    """No body of a step whose result is committed; nor of one that this very lease has begun already."""
    committed = {(step["run_id"], step["step_id"]): step for step in evidence.steps}
    begun: set[tuple[str, str, int, int]] = set()
    for line in evidence.lines:
        if line.what != "start":
            continue
        name = (line.run_id, line.step_id, line.generation, line.attempt)
        if name in begun:
            yield f"2: the body of {line.step_id} of {line.run_id} started twice in generation {line.generation}, attempt {line.attempt}."
        begun.add(name)
        step = committed.get((line.run_id, line.step_id))
        if step is None:
            continue
        if line.generation > step["generation"]:
            # By the generations, whatever clocks say: the lease was given out with the result in its memo.
            yield (
                f"2: the body of {line.step_id} of {line.run_id} started in generation {line.generation}; "
                f"its result was committed in generation {step['generation']}."
            )
            continue
        if line.at <= instant(step["committed_at"]) + CLOCK_SECONDS:
            continue
        if line.generation < step["generation"] and _was_frozen(evidence, line.pid):
            # No system can stop it: its process slept between the look at its clock and the body. It is counted.
            evidence.frozen_starts += 1
            continue
        yield (
            f"2: the body of {line.step_id} of {line.run_id} started in generation {line.generation}, "
            f"{line.at - instant(step['committed_at']):.3f} s after its result was committed in generation {step['generation']}."
        )


def no_handler_goes_on_without_an_acknowledgement(evidence: Evidence) -> Iterator[str]:
    """A handler may have a result before it is committed. Until then it starts no body, and if it never is, it goes no further."""
    committed = {(step["run_id"], step["step_id"]): step for step in evidence.steps}
    by_lease: dict[tuple[str, int, int], list[Line]] = defaultdict(list)
    for line in evidence.lines:
        if line.what in ("start", "line"):
            by_lease[line.run_id, line.generation, line.pid].append(line)
    for (run_id, generation, _), lines in by_lease.items():
        for place, line in enumerate(lines):
            if line.what != "line":
                continue
            step = committed.get((run_id, line.step_id))
            is_heard = step is not None and step["generation"] <= generation
            for after in lines[place + 1 :]:
                # The commit comes before its acknowledgement and that before the body, so no two clocks are compared loosely.
                if not is_heard or (step is not None and after.what == "start" and after.at < instant(step["committed_at"])):
                    yield (
                        f"2: in generation {generation} of {run_id} the handler went on to {after.what} {after.step_id}, "
                        f"and the result of {line.step_id} was not committed then."
                    )
                    break


def every_run_has_one_end(evidence: Evidence) -> Iterator[str]:
    for run_id, run in evidence.runs.items():
        ends = [lease for lease in evidence.leases[run_id].values() if lease["outcome"] == "completed"]
        if run["status"] is None:
            yield f"3: the run {run_id} of {run['function']} has not ended."
        if len(ends) > 1 or (len(ends) == 1) != (run["status"] == "completed"):
            yield f"4: the run {run_id} is {run['status']}, and {len(ends)} invocations completed it."
        later = [generation for generation in evidence.leases[run_id] if generation > (run["end_generation"] or 0)]
        if run["status"] is not None and later:
            yield f"4: the run {run_id} ended in generation {run['end_generation']} and was leased again: {later}."


def no_write_of_an_older_generation(evidence: Evidence) -> Iterator[str]:
    written = [(step, step["committed_at"]) for step in evidence.steps if step["kind"] in ("step", "send_events")]
    written += [(attempt, attempt["failed_at"]) for attempt in evidence.failed_attempts]
    for row, at in written:
        following = evidence.leases[row["run_id"]].get(row["generation"] + 1)
        if following is not None and following["leased_at"] is not None and at > following["leased_at"]:
            yield f"5: {row['step_id']} of {row['run_id']} was written by generation {row['generation']} at {at}, after the next lease."
    for run_id, leases in evidence.leases.items():
        for generation, lease in leases.items():
            following = leases.get(generation + 1)
            if following and lease["ended_at"] and following["leased_at"] and lease["ended_at"] > following["leased_at"]:
                yield f"5: generation {generation} of {run_id} ended after generation {generation + 1} was given out."


def no_key_is_above_its_limit(evidence: Evidence, limit: int = 2) -> Iterator[str]:
    """By leases, which must never be more; and by bodies, which the SDK stops in time."""
    by_key: dict[str, list[tuple[float, int, str]]] = defaultdict(list)
    for run_id, run in evidence.runs.items():
        if run["function"] == "limited":
            key = str(json.loads(run["data"])["tenant"])
            for lease in evidence.leases[run_id].values():
                # A cancelled run has its end in the table before its lease ends; the lease counts.
                ended = lease["ended_at"]
                by_key[f"leases of {key}"].append((instant(lease["leased_at"]), 1, run_id))
                if ended is not None:
                    by_key[f"leases of {key}"].append((instant(ended), -1, run_id))
    for key, changes in by_key.items():
        yield from _above(key, changes, limit)
    for key, changes in _body_changes(evidence).items():
        yield from _above(f"bodies of {key}", changes, limit)


def _body_changes(evidence: Evidence) -> dict[str, list[tuple[float, int, str]]]:
    """Starts and ends of bodies by key. A body whose process was killed ended with it."""
    changes: dict[str, list[tuple[float, int, str]]] = defaultdict(list)
    open_bodies: dict[tuple[Any, ...], Line] = {}
    for line in evidence.lines:
        if not line.key:
            continue
        name = (line.run_id, line.step_id, line.attempt, line.generation, line.pid)
        if line.what == "start":
            open_bodies[name] = line
            changes[line.key].append((line.at, 1, line.run_id))
        elif open_bodies.pop(name, None) is not None:
            changes[line.key].append((line.at, -1, line.run_id))
    for line in open_bodies.values():
        died_at = evidence.system.processes.died_at.get(line.pid)
        if died_at is not None:
            changes[line.key].append((died_at, -1, line.run_id))
    return changes


def _above(key: str, changes: list[tuple[float, int, str]], limit: int) -> Iterator[str]:
    held = 0
    # At one instant ends come first.
    for at, change, run_id in sorted(changes):
        held += change
        if held > limit:
            yield f"6: {held} {key} at {at:.3f} (run {run_id}); the limit is {limit}."
            return


def one_run_set_for_each_event_id(evidence: Evidence) -> Iterator[str]:
    answers: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for sent in evidence.acknowledged:
        answers[sent["id"]].add(tuple(sent["runs"]))
    for event_id, sets in answers.items():
        if len(sets) > 1:
            yield f"8: the event id {event_id} was answered with different runs: {sorted(sets)}."
    stored: dict[str, int] = defaultdict(int)
    for event in evidence.events:
        stored[event["external_id"]] += 1
    by_event: dict[tuple[str, str], int] = defaultdict(int)
    for run in evidence.runs.values():
        by_event[run["external_id"], run["function"]] += 1
    yield from (f"8: the event id {event_id} is stored {count} times." for event_id, count in stored.items() if count > 1)
    yield from (
        f"8: {count} runs of {function} for the event {event_id}."
        for (event_id, function), count in by_event.items()
        if count > 1
    )
    for step in evidence.steps:
        if step["kind"] == "send_events" and step["data"]:
            for event_id in json.loads(step["data"])["ids"]:
                if stored[event_id] != 1:
                    yield f"8: the event {event_id} that step {step['step_id']} of {step['run_id']} sent is stored {stored[event_id]} times."


def no_timer_is_early(evidence: Evidence) -> Iterator[str]:
    ends: dict[tuple[str, str], float] = {
        (line.run_id, line.step_id): line.at for line in evidence.lines if line.what == "end" and line.is_ok
    }
    starts: dict[tuple[str, str], float] = {}
    for line in evidence.lines:
        if line.what == "start":
            starts.setdefault((line.run_id, line.step_id), line.at)
    order = {step["run_id"]: [] for step in evidence.steps}  # type: dict[str, list[dict[str, Any]]]
    for step in sorted(evidence.steps, key=lambda step: step["position"]):
        order[step["run_id"]].append(step)
    for run_id, steps in order.items():
        for before, nap, after in zip(steps, steps[1:], steps[2:], strict=False):
            if nap["kind"] != "sleep":
                continue
            seconds = float(nap["step_id"].partition(":")[2])
            slept = starts.get((run_id, after["step_id"]), float("inf")) - ends.get((run_id, before["step_id"]), 0)
            if slept < seconds:
                yield f"9: {nap['step_id']} of {run_id} took {slept:.3f} s."
            registered = (nap["committed_at"] - nap["planned_at"]).total_seconds() if nap["planned_at"] else seconds
            if registered < seconds - 0.001:
                yield f"9: {nap['step_id']} of {run_id} fired {registered:.3f} s after it was registered."


def what_was_sent_comes_back(evidence: Evidence) -> Iterator[str]:
    stored = {event["external_id"]: event for event in evidence.events}
    for sent in evidence.acknowledged:
        event = stored.get(sent["id"])
        if event is not None and not sent["is_duplicate"] and json.loads(event["data"]) != sent["data"]:
            yield f"10: the event {sent['id']} is stored with other data."
    for run_id, run in evidence.runs.items():
        echoes = run["status"] == "completed" and run["function"] in ECHOING
        carried = run["status"] == "completed" and run["function"] == "carrying"
        if carried and json.loads(run["output"]) != digest_of(pages_of(json.loads(run["data"]))):
            yield f"10: the run {run_id} of carrying gave {run['output']} for {run['data']}."
        if echoes and json.loads(run["output"]) != json.loads(run["data"]):
            yield f"10: the run {run_id} of {run['function']} gave {run['output']:.200} for {run['data']:.200}."


def every_result_has_its_body(evidence: Evidence) -> Iterator[str]:
    """A committed result comes from a body that the witness saw return, in the same generation and attempt."""
    returned = {(line.run_id, line.step_id, line.generation) for line in evidence.lines if line.what == "end" and line.is_ok}
    pages = {run_id: pages_of(json.loads(run["data"])) for run_id, run in evidence.runs.items() if run["function"] == "carrying"}
    for step in evidence.steps:
        if step["run_id"] in pages and step["step_id"] == "a" and json.loads(step["data"] or "null") != pages[step["run_id"]]:
            yield f"10: the memo of {step['run_id']} holds other bytes than its body returned."
        has_result = step["kind"] == "step" and step["error"] is None and not step["is_abandoned"]
        if has_result and (step["run_id"], step["step_id"], step["generation"]) not in returned:
            yield f"2: {step['step_id']} of {step['run_id']} has a result of generation {step['generation']} that no body returned."


def only_these_failed(evidence: Evidence, functions: Collection[str]) -> Iterator[str]:
    for run_id, run in evidence.runs.items():
        if run["status"] == "failed" and run["function"] not in functions:
            details = [lease["detail"] for lease in evidence.leases[run_id].values()]
            yield f"3: the run {run_id} of {run['function']} has failed: {details}"


CHECKS: tuple[Callable[[Evidence], Iterator[str]], ...] = (
    no_acknowledged_event_is_lost,
    every_event_starts_its_runs,
    no_body_starts_after_its_result,
    no_handler_goes_on_without_an_acknowledgement,
    every_run_has_one_end,
    no_write_of_an_older_generation,
    no_key_is_above_its_limit,
    one_run_set_for_each_event_id,
    no_timer_is_early,
    what_was_sent_comes_back,
    every_result_has_its_body,
)


def instant(at: datetime) -> float:
    return at.timestamp()


def _was_frozen(evidence: Evidence, pid: int) -> bool:
    return pid in evidence.system.processes.frozen
