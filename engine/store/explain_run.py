"""Says in one sentence why a run is not running, from causes that are recorded: a full key, a held lane, a time, a wait.

It guesses nothing: when a run is due and nothing recorded stands in its way, it says that it is next in line, and whether any
engine is there to take it.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from engine.store.event_json import instant_text
from engine.store.sql import Connection, Sql

# Places beyond this are told as "more than".
PLACES_MAX = 1_000
NAMED_MAX = 3

READ_STANDING = Sql(
    "read_standing",
    """
SELECT live_run.run_id, live_run.function_id, function.name AS function, live_run.state, live_run.order_at, live_run.due_at,
       live_run.parked_for, live_run.parked_key_id, live_run.attempt, live_run.interruptions,
       extract(epoch FROM live_run.due_at - clock_timestamp())::float8 AS due_seconds,
       lane_hold.cause AS hold_cause, lane_hold.detail AS hold_detail,
       CASE WHEN isfinite(lane_hold.held_until)
            THEN extract(epoch FROM lane_hold.held_until - clock_timestamp())::float8 END AS hold_seconds,
       EXISTS (SELECT FROM engine WHERE engine.state = 'running' AND engine.seen_at > clock_timestamp() - interval '60 seconds')
         AS has_engine
  FROM live_run
  JOIN function USING (function_id)
  LEFT JOIN lane_hold ON lane_hold.function_id = live_run.function_id AND lane_hold.held_until > clock_timestamp()
 WHERE live_run.run_id = $run_id""",
)
READ_FULL_KEY = Sql(
    "read_full_key",
    """
SELECT l.key_expression, l.slots, l.in_force, k.key_text, k.held,
       ARRAY(SELECT slot.run_id FROM slot
              WHERE slot.limit_key_id = k.limit_key_id ORDER BY slot.taken_at LIMIT $holders_max) AS holders,
       (SELECT count(*) FROM (
          SELECT FROM live_run WHERE state = 'parked' AND parked_key_id = k.limit_key_id
             AND (order_at, run_id) < ($order_at, $run_id::uuid) LIMIT $places_max) AS before)::int AS before
  FROM limit_key AS k JOIN concurrency_limit AS l USING (limit_id)
 WHERE k.limit_key_id = $limit_key_id""",
)
COUNT_LANE_BEFORE = Sql(
    "count_lane_before",
    """
SELECT count(*)::int FROM (
  SELECT FROM live_run WHERE state = 'ready' AND function_id = $function_id
     AND (order_at, run_id) < ($order_at, $run_id::uuid) LIMIT $places_max) AS before""",
)
READ_OPEN_WAITS = Sql(
    "read_open_waits",
    """
SELECT step_id, kind, event_name, deadline_at, count(*) OVER ()::int AS waits
  FROM wait WHERE run_id = $run_id ORDER BY deadline_at, step_id LIMIT $waits_max""",
)
READ_OPEN_RETRIES = Sql(
    "read_open_retries",
    "SELECT step_id, attempt FROM step_retry WHERE run_id = $run_id ORDER BY due_at, step_id LIMIT $retries_max",
)


async def explain_run(conn: Connection, run_id: UUID) -> str | None:
    """The sentence; None for a run that is running, or that has ended."""
    row = await conn.fetchrow(READ_STANDING, run_id=run_id)
    if row is None:
        return None
    match row["state"]:
        case "ready":
            return await _why_ready(conn, row)
        case "delayed":
            return await _why_delayed(conn, row)
        case "parked":
            return await _why_parked(conn, row)
        case "waiting":
            return await _why_waiting(conn, row)
        case _:
            return None


async def _why_ready(conn: Connection, row: Any) -> str:
    if row["hold_cause"] is not None:
        return _why_held(row)
    before = await conn.fetchval(
        COUNT_LANE_BEFORE,
        function_id=row["function_id"],
        order_at=row["order_at"],
        run_id=row["run_id"],
        places_max=PLACES_MAX,
    )
    place = f"Due since {instant_text(row['order_at'])}, {_place(before)} in the lane of {row['function']}"
    return f"{place}." if row["has_engine"] else f"{place}; but no engine is running that could take it."


def _why_held(row: Any) -> str:
    function, detail = row["function"], row["hold_detail"].rstrip(".")
    match row["hold_cause"]:
        case "function_removed":
            return f"Held, because the app no longer has the function {function}; deploy it again, or cancel the run."
        case "app_unreachable":
            what = "the app can not be reached"
        case "unknown_function":
            what = f"the app says that it does not know the function {function}"
        case cause:
            what = f"its lane is held ({cause})"
    again = f"; tried again in {max(row['hold_seconds'], 0):.1f} s" if row["hold_seconds"] is not None else ""
    return f"Held, because {what}: {detail}{again}."


async def _why_delayed(conn: Connection, row: Any) -> str:
    when = f"in {max(row['due_seconds'], 0):.1f} s, at {instant_text(row['due_at'])}"
    if row["interruptions"] > 0:
        return f"Its last {row['interruptions']} invocations broke off; it is handed over again {when}."
    retries = await conn.fetch(READ_OPEN_RETRIES, run_id=row["run_id"], retries_max=NAMED_MAX)
    if row["attempt"] > 1 or not retries:
        return f"Its function failed; attempt {row['attempt']} begins {when}."
    named = ", ".join(f"{retry['step_id']} (attempt {retry['attempt']})" for retry in retries)
    return f"A failed step is tried again {when}: {named}."


async def _why_parked(conn: Connection, row: Any) -> str:
    if row["parked_for"] == "quarantine":
        broken = f" after {row['interruptions']} broken invocations in a row" if row["interruptions"] else ""
        return f"Quarantined{broken}: it may be what breaks them. Look at its invocations, then cancel it or start it anew."
    if row["parked_key_id"] is None:
        return f"Held for {row['parked_for']}."
    key = await conn.fetchrow(
        READ_FULL_KEY,
        limit_key_id=row["parked_key_id"],
        order_at=row["order_at"],
        run_id=row["run_id"],
        holders_max=NAMED_MAX,
        places_max=PLACES_MAX,
    )
    if key is None:
        return f"Held for {row['parked_for']}."
    name = f"key {key['key_expression']} = {key['key_text']}" if key["key_expression"] else f"limit of {row['function']}"
    holders = ", ".join(str(holder) for holder in key["holders"])
    more = f" and {key['held'] - len(key['holders'])} more" if key["held"] > len(key["holders"]) else ""
    place = _place(key["before"])
    if key["held"] < key["slots"] or not key["in_force"]:
        return f"A concurrency slot of the {name} is free and about to be given out; the run is {place} in line."
    slots = "slot" if key["slots"] == 1 else "slots"
    held = f"{key['held']} of {key['slots']} {slots} held by {holders}{more}"
    return f"The concurrency {name} is full: {held}; the run is {place} in line."


async def _why_waiting(conn: Connection, row: Any) -> str:
    waits = await conn.fetch(READ_OPEN_WAITS, run_id=row["run_id"], waits_max=NAMED_MAX)
    words = [
        f"{wait['step_id']} sleeps until {instant_text(wait['deadline_at'])}"
        if wait["kind"] == "sleep"
        else f"{wait['step_id']} waits for the event {wait['event_name']} until {instant_text(wait['deadline_at'])}"
        for wait in waits
    ]
    if not words:
        return "It waits, but no open wait is recorded: durable audit will say more."
    more = f"; and {waits[0]['waits'] - len(words)} more waits" if waits[0]["waits"] > len(words) else ""
    return f"{'; '.join(words)}{more}."


def _place(before: int) -> str:
    return f"number {before + 1}" if before < PLACES_MAX else f"behind more than {PLACES_MAX:,}"
