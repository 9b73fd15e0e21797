-- 0002: what one round trip per report needs: a run's row says by itself whether anything is open in it, and large values have a place before they are a memo.

-- Whether the run may have open waits or retries. Every transition that knows all that is open sets it exactly; whoever only closes
-- something may leave it true. It is never false while something is open, so a report of a run that has it false needs no look.
ALTER TABLE live_run ADD COLUMN has_open boolean NOT NULL DEFAULT false;
UPDATE live_run SET has_open = true
 WHERE EXISTS (SELECT FROM wait WHERE wait.run_id = live_run.run_id)
    OR EXISTS (SELECT FROM step_retry WHERE step_retry.run_id = live_run.run_id);

-- A value that an app sent before the step whose result it is: bound to its workspace and run, and gone once a memo entry holds it.
CREATE TABLE stored_value (
  value_id     uuid PRIMARY KEY,
  workspace_id int NOT NULL,
  run_id       uuid NOT NULL,
  data         text NOT NULL,
  created_at   timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX stored_value_by_age ON stored_value (created_at);

-- Counts up whenever the functions, triggers, limits or the manifest of a workspace change: what was read of them before is out of date.
ALTER TABLE workspace ADD COLUMN sync_version bigint NOT NULL DEFAULT 0;

-- Tables that only grow are read by key: their plans do not change with their size, so few looks at their statistics do.
ALTER TABLE event          SET (autovacuum_analyze_scale_factor = 0.5, autovacuum_analyze_threshold = 5000);
ALTER TABLE event_decision SET (autovacuum_analyze_scale_factor = 0.5, autovacuum_analyze_threshold = 5000);
ALTER TABLE run            SET (autovacuum_analyze_scale_factor = 0.5, autovacuum_analyze_threshold = 5000);
ALTER TABLE run_end        SET (autovacuum_analyze_scale_factor = 0.5, autovacuum_analyze_threshold = 5000);
ALTER TABLE invocation     SET (autovacuum_analyze_scale_factor = 0.5, autovacuum_analyze_threshold = 5000);
ALTER TABLE step           SET (autovacuum_analyze_scale_factor = 0.5, autovacuum_analyze_threshold = 5000);
