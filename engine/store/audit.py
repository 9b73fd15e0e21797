"""Looks for what must never be: `durable audit`. Every check is one statement on one snapshot, and finds nothing at any moment.

It only reads. What takes a moment to heal by design (a lease that ended, a timer that is due) counts once that moment is long
over.
"""

from __future__ import annotations

from typing import Final

import msgspec

from engine.store.sql import Connection, Sql

# Findings a check: enough to see the kind of the fault, and bounded when all is wrong.
FINDINGS_PER_CHECK_MAX: Final = 50


class Finding(msgspec.Struct, frozen=True):
    """Something that must not be: the check that found it, the ids of what it is about, and a sentence."""

    check: str
    objects: list[str]
    sentence: str


# Each gives `objects` (texts) and a `sentence` for every thing that must not be.
CHECKS: Final = (
    # One state each.
    Sql(
        "audit_run_without_state",
        """
SELECT ARRAY[run.run_id::text] AS objects, 'The run is neither live nor ended.' AS sentence
  FROM run
 WHERE NOT EXISTS (SELECT FROM live_run WHERE live_run.run_id = run.run_id)
   AND NOT EXISTS (SELECT FROM run_end WHERE run_end.run_id = run.run_id)
 LIMIT $findings_max""",
    ),
    Sql(
        "audit_run_in_two_states",
        """
SELECT ARRAY[live_run.run_id::text] AS objects,
       format('The run has ended (%s) and is %s as well.', run_end.status, live_run.state) AS sentence
  FROM live_run JOIN run_end USING (run_id)
 WHERE live_run.state <> 'cancelled' OR run_end.status <> 'cancelled'
 LIMIT $findings_max""",
    ),
    Sql(
        "audit_cancelled_without_end",
        """
SELECT ARRAY[live_run.run_id::text] AS objects, 'The run is marked as cancelled but has no end.' AS sentence
  FROM live_run
 WHERE live_run.state = 'cancelled' AND NOT EXISTS (SELECT FROM run_end WHERE run_end.run_id = live_run.run_id)
 LIMIT $findings_max""",
    ),
    Sql(
        "audit_live_run_unknown",
        """
SELECT ARRAY[live_run.run_id::text] AS objects, 'There is a state for a run that does not exist.' AS sentence
  FROM live_run WHERE NOT EXISTS (SELECT FROM run WHERE run.run_id = live_run.run_id)
 LIMIT $findings_max""",
    ),
    Sql(
        "audit_leased_without_engine",
        """
SELECT ARRAY[run_id::text] AS objects, 'The run is leased, but to no engine.' AS sentence
  FROM live_run WHERE state = 'leased' AND (engine_id IS NULL OR leased_at IS NULL OR generation = 0)
 LIMIT $findings_max""",
    ),
    Sql(
        "audit_lease_not_reclaimed",
        """
SELECT ARRAY[run_id::text] AS objects,
       format('The lease of generation %s ended at %s and nobody reclaimed it.', generation, due_at) AS sentence
  FROM live_run WHERE state IN ('leased', 'cancelled') AND due_at < now() - interval '60 seconds'
 LIMIT $findings_max""",
    ),
    Sql(
        "audit_delay_overdue",
        """
SELECT ARRAY[run_id::text] AS objects, format('The run was due at %s and is still delayed.', due_at) AS sentence
  FROM live_run WHERE state = 'delayed' AND due_at < now() - interval '60 seconds'
 LIMIT $findings_max""",
    ),
    # Waits.
    Sql(
        "audit_waiting_for_nothing",
        """
SELECT ARRAY[live_run.run_id::text] AS objects, 'The run waits, but has no open wait that could wake it.' AS sentence
  FROM live_run
 WHERE state = 'waiting' AND NOT EXISTS (SELECT FROM wait WHERE wait.run_id = live_run.run_id)
 LIMIT $findings_max""",
    ),
    Sql(
        "audit_wait_of_no_run",
        """
SELECT ARRAY[wait.run_id::text, wait.step_id] AS objects, 'The wait belongs to a run that is over.' AS sentence
  FROM wait
 WHERE NOT EXISTS (SELECT FROM live_run WHERE live_run.run_id = wait.run_id AND live_run.state <> 'cancelled')
 LIMIT $findings_max""",
    ),
    Sql(
        "audit_wait_overdue",
        """
SELECT ARRAY[run_id::text, step_id] AS objects, format('The wait ended at %s and nobody resolved it.', deadline_at) AS sentence
  FROM wait WHERE NOT is_pending AND deadline_at < now() - interval '60 seconds'
 LIMIT $findings_max""",
    ),
    Sql(
        "audit_wait_without_shape",
        """
SELECT ARRAY[wait.run_id::text, wait.step_id] AS objects,
       'The wait for an event is in no index, so no event can end it.' AS sentence
  FROM wait
 WHERE kind = 'wait_for_event'
   AND (match_hash IS NULL OR NOT EXISTS (SELECT FROM event_shape WHERE event_shape.shape_id = wait.shape_id))
 LIMIT $findings_max""",
    ),
    Sql(
        "audit_wait_pending_too_long",
        """
SELECT ARRAY[wait.run_id::text, wait.step_id] AS objects, 'The wait still waits for the index of earlier events.' AS sentence
  FROM wait JOIN event_shape USING (shape_id)
 WHERE wait.is_pending AND wait.registered_at < now() - interval '60 seconds'
 LIMIT $findings_max""",
    ),
    Sql(
        "audit_wait_pending_on_ready_shape",
        """
SELECT ARRAY[wait.run_id::text, wait.step_id] AS objects,
       'The wait is pending although the index of earlier events is complete.' AS sentence
  FROM wait JOIN event_shape USING (shape_id)
 WHERE wait.is_pending AND event_shape.is_ready
 LIMIT $findings_max""",
    ),
    Sql(
        "audit_retry_of_no_run",
        """
SELECT ARRAY[step_retry.run_id::text, step_retry.step_id] AS objects, 'The retry belongs to a run that is over.' AS sentence
  FROM step_retry
 WHERE NOT EXISTS (SELECT FROM live_run WHERE live_run.run_id = step_retry.run_id AND live_run.state <> 'cancelled')
 LIMIT $findings_max""",
    ),
    Sql(
        "audit_open_but_not_marked",
        """
SELECT ARRAY[live_run.run_id::text] AS objects,
       'The run has open waits or retries, but its row says that nothing is open.' AS sentence
  FROM live_run
 WHERE NOT live_run.has_open
   AND (EXISTS (SELECT FROM wait WHERE wait.run_id = live_run.run_id)
        OR EXISTS (SELECT FROM step_retry WHERE step_retry.run_id = live_run.run_id))
 LIMIT $findings_max""",
    ),
    Sql(
        "audit_taken_event_of_no_run",
        """
SELECT ARRAY[taken_event.run_id::text, taken_event.event_id::text] AS objects,
       'The taken event belongs to a run that is over.' AS sentence
  FROM taken_event WHERE NOT EXISTS (SELECT FROM live_run WHERE live_run.run_id = taken_event.run_id)
 LIMIT $findings_max""",
    ),
    # The memo.
    Sql(
        "audit_positions_not_dense",
        """
SELECT ARRAY[live_run.run_id::text] AS objects,
       format('The run is at position %s, but its memo has %s entries from %s to %s.', live_run.position, count(step.position),
              min(step.position), max(step.position)) AS sentence
  FROM live_run LEFT JOIN step USING (run_id)
 GROUP BY live_run.run_id, live_run.position
HAVING count(DISTINCT step.position) <> live_run.position OR count(step.position) <> live_run.position
    OR coalesce(max(step.position), 0) <> live_run.position
 LIMIT $findings_max""",
    ),
    Sql(
        "audit_settled_and_open",
        """
SELECT ARRAY[step.run_id::text, step.step_id] AS objects,
       format('The step has its memo entry and an open %s.', open.what) AS sentence
  FROM (SELECT run_id, step_id, 'wait' AS what FROM wait
        UNION ALL SELECT run_id, step_id, 'retry' FROM step_retry) AS open
  JOIN step USING (run_id, step_id)
 LIMIT $findings_max""",
    ),
    Sql(
        "audit_step_of_no_run",
        """
SELECT ARRAY[step.run_id::text, step.step_id] AS objects, 'The memo entry belongs to a run that does not exist.' AS sentence
  FROM step WHERE NOT EXISTS (SELECT FROM run WHERE run.run_id = step.run_id)
 LIMIT $findings_max""",
    ),
    # Events.
    Sql(
        "audit_event_not_decided",
        """
SELECT ARRAY[event.event_id::text] AS objects,
       format('The event %s has %s decisions; %s were made.', event.name, count(d.function_id), event.decisions) AS sentence
  FROM event LEFT JOIN event_decision AS d USING (event_id)
 GROUP BY event.event_id
HAVING count(d.function_id) <> event.decisions
 LIMIT $findings_max""",
    ),
    Sql(
        "audit_decision_without_run",
        """
SELECT ARRAY[d.event_id::text, d.run_id::text] AS objects,
       'The event is said to have started a run that does not exist.' AS sentence
  FROM event_decision AS d
 WHERE d.decision = 'run' AND NOT EXISTS (SELECT FROM run WHERE run.run_id = d.run_id AND run.event_id = d.event_id)
 LIMIT $findings_max""",
    ),
    # Limits.
    Sql(
        "audit_slot_without_holder",
        """
SELECT ARRAY[slot.run_id::text, slot.limit_key_id::text] AS objects,
       'The concurrency slot is held by a run that is neither promoted nor leased.' AS sentence
  FROM slot LEFT JOIN live_run USING (run_id)
 WHERE (CASE WHEN slot.generation IS NULL THEN live_run.state = 'ready'
             ELSE live_run.state IN ('leased', 'cancelled') AND live_run.generation = slot.generation
                  AND live_run.due_at > now() - interval '10 seconds' END) IS NOT TRUE
 LIMIT $findings_max""",
    ),
    Sql(
        "audit_held_not_counted",
        """
SELECT ARRAY[k.limit_key_id::text] AS objects,
       format('The key %s says that %s slots are held; there are %s.', k.key_text, k.held, count(slot.run_id)) AS sentence
  FROM limit_key AS k LEFT JOIN slot USING (limit_key_id)
 GROUP BY k.limit_key_id
HAVING count(slot.run_id) <> k.held
 LIMIT $findings_max""",
    ),
    # Above the limit is allowed only for slots that were taken before the limit was lowered, which a sync does. 30 seconds: no
    # transaction that read the former limit is older.
    Sql(
        "audit_limit_exceeded",
        """
SELECT ARRAY[ranked.limit_key_id::text, ranked.run_id::text] AS objects,
       format('Slot %s of the key %s was taken at %s, and the limit is %s.', ranked.place, ranked.key_text, ranked.taken_at,
              ranked.slots) AS sentence
  FROM (SELECT slot.limit_key_id, slot.run_id, slot.taken_at, k.key_text, l.slots, l.function_id,
               row_number() OVER (PARTITION BY slot.limit_key_id ORDER BY slot.taken_at) AS place
          FROM slot JOIN limit_key AS k USING (limit_key_id) JOIN concurrency_limit AS l USING (limit_id)
         WHERE l.in_force) AS ranked
  JOIN function USING (function_id)
  JOIN app USING (workspace_id)
 WHERE ranked.place > ranked.slots AND ranked.taken_at > app.synced_at + interval '30 seconds'
 LIMIT $findings_max""",
    ),
    Sql(
        "audit_promotion_forgotten",
        """
SELECT ARRAY[k.limit_key_id::text] AS objects,
       format('The key %s has a free slot and runs that wait for it, and no promotion is owed.', k.key_text) AS sentence
  FROM limit_key AS k JOIN concurrency_limit AS l USING (limit_id)
 WHERE (k.held < l.slots OR NOT l.in_force)
   AND EXISTS (SELECT FROM live_run WHERE live_run.state = 'parked' AND live_run.parked_key_id = k.limit_key_id)
   AND NOT EXISTS (SELECT FROM promotion WHERE promotion.limit_key_id = k.limit_key_id)
 LIMIT $findings_max""",
    ),
    Sql(
        "audit_parked_at_no_key",
        """
SELECT ARRAY[live_run.run_id::text] AS objects, 'The run is parked for a slot of a key that it does not have.' AS sentence
  FROM live_run
 WHERE state = 'parked' AND parked_for = 'limit'
   AND (parked_key_id = ANY(limit_key_ids)) IS NOT TRUE
 LIMIT $findings_max""",
    ),
    # Functions.
    Sql(
        "audit_removed_without_hold",
        """
SELECT ARRAY[function.function_id::text] AS objects,
       format('The function %s was removed, but its lane is not held.', function.name) AS sentence
  FROM function
 WHERE function.removed_at IS NOT NULL
   AND NOT EXISTS (SELECT FROM lane_hold WHERE lane_hold.function_id = function.function_id
                                           AND lane_hold.cause = 'function_removed')
 LIMIT $findings_max""",
    ),
    Sql(
        "audit_held_without_removal",
        """
SELECT ARRAY[function.function_id::text] AS objects,
       format('The lane of the function %s is held as removed, but its app has it.', function.name) AS sentence
  FROM function JOIN lane_hold USING (function_id)
 WHERE function.removed_at IS NULL AND lane_hold.cause = 'function_removed'
 LIMIT $findings_max""",
    ),
)


async def audit(conn: Connection) -> list[Finding]:
    """Everything that must not be; an empty list when all is well."""
    findings: list[Finding] = []
    for check in CHECKS:
        rows = await conn.fetch(check, findings_max=FINDINGS_PER_CHECK_MAX)
        findings += [Finding(check.name.removeprefix("audit_"), list(row["objects"]), row["sentence"]) for row in rows]
    return findings
