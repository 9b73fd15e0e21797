-- 0001: the words of the system as tables, because every later migration speaks in them: workspaces, functions, events, runs, steps, waits, limits.

-- Workspaces, their keys and the people's tokens ---------------------------------------------------------------------

CREATE TABLE workspace (
  workspace_id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  app          text NOT NULL,
  env          text NOT NULL,
  created_at   timestamptz NOT NULL DEFAULT now(),
  UNIQUE (app, env)
);

CREATE TABLE signing_key (
  key_id       uuid PRIMARY KEY,
  workspace_id int NOT NULL REFERENCES workspace,
  sealed_key   bytea NOT NULL,
  created_at   timestamptz NOT NULL DEFAULT now(),
  revoked_at   timestamptz
);
CREATE INDEX signing_key_by_workspace ON signing_key (workspace_id);

CREATE TABLE event_key (
  key_sha256   bytea PRIMARY KEY,
  workspace_id int NOT NULL REFERENCES workspace,
  label        text NOT NULL,
  created_at   timestamptz NOT NULL DEFAULT now(),
  revoked_at   timestamptz
);

CREATE TABLE admin_token (
  token_sha256 bytea PRIMARY KEY,
  label        text NOT NULL,
  is_dev       boolean NOT NULL,
  created_at   timestamptz NOT NULL DEFAULT now(),
  revoked_at   timestamptz
);

-- Append-only: who changed what. No row of it is ever updated or deleted.
CREATE TABLE audit_entry (
  audit_entry_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  workspace_id   int,
  actor          text NOT NULL,
  action         text NOT NULL,
  object         text NOT NULL,
  happened_at    timestamptz NOT NULL DEFAULT now()
);

-- Apps and functions -------------------------------------------------------------------------------------------------

CREATE TABLE app (
  workspace_id int PRIMARY KEY REFERENCES workspace,
  serve_url    text NOT NULL,
  manifest     text NOT NULL,
  deployment   text NOT NULL,
  synced_at    timestamptz NOT NULL DEFAULT now()
);

-- A function is also the lane in which its ready runs stand.
CREATE TABLE function (
  function_id    int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  workspace_id   int NOT NULL REFERENCES workspace,
  name           text NOT NULL,
  config         text NOT NULL,
  config_version int NOT NULL DEFAULT 1,
  removed_at     timestamptz,
  UNIQUE (workspace_id, name)
);

CREATE TABLE trigger (
  workspace_id int NOT NULL,
  event_name   text NOT NULL,
  function_id  int NOT NULL REFERENCES function,
  ordinal      smallint NOT NULL,
  condition    text,
  PRIMARY KEY (workspace_id, event_name, function_id, ordinal)
);

-- Why no run of this lane is claimed now: the function was removed, or its app can not be reached.
CREATE TABLE lane_hold (
  function_id int PRIMARY KEY REFERENCES function,
  held_until  timestamptz NOT NULL,
  cause       text NOT NULL,
  detail      text NOT NULL,
  failures    int NOT NULL DEFAULT 1
);

-- Events -------------------------------------------------------------------------------------------------------------

CREATE SEQUENCE event_seq;

CREATE TABLE event (
  event_id     uuid PRIMARY KEY,
  workspace_id int NOT NULL,
  seq          bigint NOT NULL,
  name         text NOT NULL,
  external_id  text NOT NULL,
  data         text NOT NULL,
  received_at  timestamptz NOT NULL,
  decisions    smallint NOT NULL
);
CREATE INDEX event_by_name ON event (workspace_id, name, seq);

-- One row per event and function that its name triggers: what was decided.
CREATE TABLE event_decision (
  event_id    uuid NOT NULL,
  function_id int NOT NULL,
  decision    text NOT NULL CHECK (decision IN ('run', 'skipped')),
  reason      text,
  run_id      uuid,
  PRIMARY KEY (event_id, function_id)
);

CREATE TABLE event_dedup (
  workspace_id int NOT NULL,
  scope        text NOT NULL,
  external_id  text NOT NULL,
  event_id     uuid NOT NULL,
  body_sha256  bytea NOT NULL,
  expires_at   timestamptz NOT NULL,
  PRIMARY KEY (workspace_id, scope, external_id)
);
CREATE INDEX event_dedup_expiry ON event_dedup (expires_at);

-- A shape is a set of paths that waits for one event name compare. Events are keyed by every shape of their name when they come, so
-- that a wait finds the events before it (lookback) and an event finds the waits before it, both by index.
CREATE TABLE event_shape (
  shape_id      int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  workspace_id  int NOT NULL,
  event_name    text NOT NULL,
  paths         text[] NOT NULL,
  backfill_from bigint NOT NULL,
  backfill_to   bigint NOT NULL,
  is_ready      boolean NOT NULL,
  UNIQUE (workspace_id, event_name, paths)
);
CREATE INDEX event_shape_pending ON event_shape (shape_id) WHERE NOT is_ready;

CREATE TABLE event_key_match (
  shape_id   int NOT NULL,
  match_hash bytea NOT NULL,
  seq        bigint NOT NULL,
  event_id   uuid NOT NULL,
  PRIMARY KEY (shape_id, match_hash, seq)
);

-- Runs ---------------------------------------------------------------------------------------------------------------

CREATE TABLE run (
  run_id       uuid PRIMARY KEY,
  workspace_id int NOT NULL,
  function_id  int NOT NULL,
  event_id     uuid NOT NULL,
  event_seq    bigint NOT NULL,
  created_at   timestamptz NOT NULL
);
CREATE INDEX run_by_workspace ON run (workspace_id, run_id);

-- One row for each run that has not ended: its one state is this row's state, so two states at once can not be written.
--   ready    due now, in its lane          (order_at)
--   delayed  ready, but not before due_at  (a retry)
--   parked   held for a named cause        (parked_for, parked_key_id)
--   waiting  has open waits and nothing else
--   leased   an engine executes it         (due_at is the end of the lease)
--   cancelled  the run has ended, its last invocation has not (due_at is the end of the lease; slots stay until then)
CREATE TABLE live_run (
  run_id        uuid PRIMARY KEY,
  workspace_id  int NOT NULL,
  function_id   int NOT NULL,
  state         text NOT NULL CHECK (state IN ('ready', 'delayed', 'parked', 'waiting', 'leased', 'cancelled')),
  order_at      timestamptz NOT NULL,
  due_at        timestamptz,
  parked_for    text,
  parked_key_id bigint,
  generation    int NOT NULL DEFAULT 0,
  engine_id     uuid,
  leased_at     timestamptz,
  position      int NOT NULL DEFAULT 0,
  memo_bytes    int NOT NULL DEFAULT 0,
  attempt       int NOT NULL DEFAULT 1,
  interruptions int NOT NULL DEFAULT 0,
  undelivered   int NOT NULL DEFAULT 0,
  mismatches    int NOT NULL DEFAULT 0,
  limit_key_ids bigint[],
  CHECK ((state IN ('delayed', 'leased', 'cancelled')) = (due_at IS NOT NULL)),
  CHECK ((state = 'parked') = (parked_for IS NOT NULL))
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000,
        autovacuum_vacuum_cost_delay = 1, autovacuum_analyze_scale_factor = 0.1);
CREATE INDEX live_run_ready ON live_run (function_id, order_at, run_id) WHERE state = 'ready';
CREATE INDEX live_run_delayed ON live_run (due_at) WHERE state = 'delayed';
CREATE INDEX live_run_leased ON live_run (due_at) WHERE state IN ('leased', 'cancelled');
CREATE INDEX live_run_parked ON live_run (parked_key_id, order_at, run_id) WHERE state = 'parked';

CREATE TABLE run_end (
  run_id     uuid PRIMARY KEY,
  status     text NOT NULL CHECK (status IN ('completed', 'failed', 'cancelled')),
  output     text,
  error      text,
  generation int NOT NULL,
  ended_at   timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- One row for each invocation that has ended.
CREATE TABLE invocation (
  run_id      uuid NOT NULL,
  generation  int NOT NULL,
  engine_id   uuid,
  attempt     int NOT NULL,
  leased_at   timestamptz,
  ended_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
  outcome     text NOT NULL,
  detail      text,
  PRIMARY KEY (run_id, generation)
);

CREATE TABLE engine (
  engine_id  uuid PRIMARY KEY,
  name       text NOT NULL,
  started_at timestamptz NOT NULL DEFAULT now(),
  seen_at    timestamptz NOT NULL DEFAULT now(),
  state      text NOT NULL CHECK (state IN ('running', 'draining'))
);

-- Steps and waits ----------------------------------------------------------------------------------------------------

-- The memo. A row of it is written once and never changed.
CREATE TABLE step (
  run_id           uuid NOT NULL,
  step_id          text NOT NULL,
  position         int NOT NULL,
  kind             text NOT NULL CHECK (kind IN ('step', 'sleep', 'wait_for_event', 'send_events')),
  data             text,
  error            text,
  is_abandoned     boolean NOT NULL DEFAULT false,
  event_id         uuid,
  attempt          int NOT NULL DEFAULT 1,
  seen             int NOT NULL DEFAULT 0,
  generation       int NOT NULL,
  planned_at       timestamptz,
  started_at       timestamptz,
  duration_seconds double precision,
  committed_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (run_id, step_id)
);

-- One row for each failed try of a step.
CREATE TABLE step_attempt (
  run_id           uuid NOT NULL,
  step_id          text NOT NULL,
  attempt          int NOT NULL,
  error            text NOT NULL,
  generation       int NOT NULL,
  started_at       timestamptz,
  duration_seconds double precision,
  failed_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (run_id, step_id, attempt)
);

-- A step that failed and may be tried again: its next try, and when.
CREATE TABLE step_retry (
  run_id  uuid NOT NULL,
  step_id text NOT NULL,
  attempt int NOT NULL,
  due_at  timestamptz NOT NULL,
  PRIMARY KEY (run_id, step_id)
);

CREATE TABLE wait (
  wait_id       bigint GENERATED ALWAYS AS IDENTITY,
  run_id        uuid NOT NULL,
  step_id       text NOT NULL,
  kind          text NOT NULL CHECK (kind IN ('sleep', 'wait_for_event')),
  deadline_at   timestamptz NOT NULL,
  registered_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  is_pending    boolean NOT NULL DEFAULT false,
  event_name    text,
  match         text,
  condition     text,
  shape_id      int,
  match_hash    bytea,
  has_lookback  boolean NOT NULL DEFAULT true,
  PRIMARY KEY (run_id, step_id)
);
CREATE INDEX wait_by_deadline ON wait (deadline_at) WHERE NOT is_pending;
CREATE INDEX wait_by_match ON wait (shape_id, match_hash) WHERE shape_id IS NOT NULL;
CREATE INDEX wait_pending ON wait (shape_id) WHERE is_pending;

-- Events that waits of a run took: an event satisfies one wait of a run.
CREATE TABLE taken_event (
  run_id   uuid NOT NULL,
  event_id uuid NOT NULL,
  PRIMARY KEY (run_id, event_id)
);

-- Concurrency --------------------------------------------------------------------------------------------------------

CREATE TABLE concurrency_limit (
  limit_id       int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  function_id    int NOT NULL REFERENCES function,
  key_expression text NOT NULL,
  slots          int NOT NULL,
  in_force       boolean NOT NULL DEFAULT true,
  UNIQUE (function_id, key_expression)
);

-- held counts the slots of a key. It changes only together with rows of slot, under this row's lock.
CREATE TABLE limit_key (
  limit_key_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  limit_id     int NOT NULL REFERENCES concurrency_limit,
  key_hash     bytea NOT NULL,
  key_text     text NOT NULL,
  held         int NOT NULL DEFAULT 0 CHECK (held >= 0),
  UNIQUE (limit_id, key_hash)
) WITH (fillfactor = 70);

-- A slot belongs to a leased run (generation set), or is reserved for a ready one that was promoted (generation null).
CREATE TABLE slot (
  run_id       uuid NOT NULL,
  limit_key_id bigint NOT NULL,
  generation   int,
  taken_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (run_id, limit_key_id)
);
CREATE INDEX slot_by_key ON slot (limit_key_id);

-- A key with free slots and waiters whose promotion is still owed; any engine pays.
CREATE TABLE promotion (
  limit_key_id bigint PRIMARY KEY,
  owed_at      timestamptz NOT NULL DEFAULT now()
);
