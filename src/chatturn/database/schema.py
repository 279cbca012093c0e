"""
The whole schema as text: it makes a new database, and an existing one is compared with it.

The text stands here and not in a ``.sql`` file because only Python is uploaded to the Worker.  The ``schema.sql`` at
the project's root is a copy for people and for the ``sqlite3`` shell; a test compares the two.
"""

import re
from typing import Final

from chatturn.database.ledger_sums import SUMS_TABLES, SUMS_TRIGGERS, fill_sums

__all__ = [
    "ADDED_COLUMNS",
    "BEFORE_REBUILT",
    "BEHIND_REBUILT",
    "DURABLE_SCHEMA_SQL",
    "DURABLE_SCHEMA_VERSION",
    "REBUILT",
    "schema_columns",
    "schema_statements",
    "schema_triggers",
]

DURABLE_SCHEMA_VERSION: Final = 120
"""The version in ``durable_schema_info`` that this code needs; below 100 are agent-runtime's own."""

_TABLE: Final = re.compile(r"^CREATE TABLE IF NOT EXISTS (\w+)", re.MULTILINE)
_TRIGGER: Final = re.compile(r"^CREATE TRIGGER IF NOT EXISTS (\w+)", re.MULTILINE)
_COLUMN: Final = re.compile(r"^  ([a-z_]+) [A-Z]", re.MULTILINE)

REBUILT: Final = ("chat_outbox", "payload_json")
"""A table to rebuild, since SQLite cannot change its CHECK; an old one is recognised by its missing column."""
BEFORE_REBUILT: Final = (
    "DROP INDEX IF EXISTS idx_chat_outbox_due",
    "DROP INDEX IF EXISTS idx_chat_outbox_given_up",
    "ALTER TABLE chat_outbox RENAME TO chat_outbox_of_before",
)
BEHIND_REBUILT: Final = (
    """
INSERT INTO chat_outbox (run_id, hook, attempt, status, failures, next_call_at, last_error, created_at)
SELECT run_id, hook, attempt, status, failures, next_call_at, last_error, created_at FROM chat_outbox_of_before
""",
    "DROP TABLE chat_outbox_of_before",
)

ADDED_COLUMNS: Final = (
    ("durable_runs", "epoch", "INTEGER NOT NULL DEFAULT 0"),
    ("durable_runs", "idle_attempts", "INTEGER NOT NULL DEFAULT 0"),
    ("durable_runs", "attempts", "INTEGER NOT NULL DEFAULT 0"),
    ("durable_runs", "key_part", "TEXT"),
    ("chat_turns", "log_from", "INTEGER NOT NULL DEFAULT 0 CHECK (log_from >= 0)"),
    ("chat_turns", "suspensions", "INTEGER NOT NULL DEFAULT 0 CHECK (suspensions >= 0)"),
    ("chat_turns", "cancelled_at", "TEXT CHECK (length(cancelled_at) = 24)"),
    ("chat_turns", "followed_until", "TEXT CHECK (length(followed_until) = 24)"),
    ("chat_turns", "first_attempt", "INTEGER NOT NULL DEFAULT 1 CHECK (first_attempt >= 1)"),
    ("chat_turns", "manifest_hash", "TEXT NOT NULL DEFAULT ''"),
    ("chat_turns", "traceparent", "TEXT CHECK (length(traceparent) = 55)"),
    ("chat_turns", "caller_span_id", "TEXT CHECK (length(caller_span_id) = 16)"),
    ("chat_turns", "traced_by", "INTEGER CHECK (traced_by >= 1)"),
    ("chat_turns", "history_json", "TEXT"),
    ("chat_turns", "log_compact", "INTEGER NOT NULL DEFAULT 0 CHECK (log_compact IN (0, 1))"),
    ("chat_turns", "log_kept", "INTEGER NOT NULL DEFAULT 1 CHECK (log_kept IN (0, 1))"),
    ("chat_turns", "parameters_json", "TEXT"),
    ("chat_turns", "finish_reason", "TEXT"),
    ("chat_turns", "retry_at", "TEXT CHECK (length(retry_at) = 24)"),
    ("chat_turns", "version", "INTEGER NOT NULL DEFAULT 1 CHECK (version >= 1)"),
    ("chat_turns", "replaces", "INTEGER CHECK (replaces >= 1)"),
    ("chat_turns", "replace_kind", "TEXT CHECK (replace_kind IN ('regenerate', 'edit'))"),
    ("chat_turns", "parent_index", "INTEGER CHECK (parent_index >= 0)"),
    ("chat_turns", "parent_version", "INTEGER CHECK (parent_version >= 1)"),
    ("chat_turns", "asked_at_index", "INTEGER CHECK (asked_at_index >= 0)"),
    ("chat_turns", "parts_json", "TEXT"),
    ("chat_turns", "kept_json", "TEXT"),
    ("chat_turns", "reserved_micro_usd", "INTEGER NOT NULL DEFAULT 0 CHECK (reserved_micro_usd >= 0)"),
    ("chat_messages", "version", "INTEGER NOT NULL DEFAULT 1 CHECK (version >= 1)"),
    ("chat_messages", "breaks", "INTEGER NOT NULL DEFAULT 0 CHECK (breaks IN (0, 1))"),
    ("chat_sessions", "title", "TEXT"),
    ("chat_sessions", "active_at", "TEXT CHECK (length(active_at) = 24)"),
    ("chat_segments", "ended", "INTEGER NOT NULL DEFAULT 0 CHECK (ended IN (0, 1))"),
    ("chat_usage", "tenant_id", "TEXT NOT NULL DEFAULT ''"),
    ("chat_usage", "session_id", "TEXT NOT NULL DEFAULT ''"),
    (
        "chat_usage",
        "outcome",
        "TEXT NOT NULL DEFAULT 'completed' CHECK (outcome IN ('running', 'completed', 'failed', 'cancelled', 'lost'))",
    ),
    ("chat_usage", "wasted", "INTEGER NOT NULL DEFAULT 0 CHECK (wasted IN (0, 1))"),
    ("chat_usage", "estimated_tokens_out", "INTEGER CHECK (estimated_tokens_out >= 0)"),
    ("chat_usage", "cost_micro_usd", "INTEGER CHECK (cost_micro_usd >= 0)"),
    ("chat_usage", "tries", "INTEGER CHECK (tries >= 0)"),
    ("chat_usage", "headers_ms", "INTEGER CHECK (headers_ms >= 0)"),
    ("chat_usage", "first_token_ms", "INTEGER CHECK (first_token_ms >= 0)"),
    ("chat_usage", "duration_ms", "INTEGER CHECK (duration_ms >= 0)"),
    ("chat_usage", "error_code", "TEXT"),
    ("chat_usage", "request_id", "TEXT"),
    ("chat_usage", "estimated_cost_micro_usd", "INTEGER CHECK (estimated_cost_micro_usd >= 0)"),
)
"""Columns added to a table after its first version; ``CREATE TABLE IF NOT EXISTS`` does not add them."""

DURABLE_SCHEMA_SQL: Final = (
    """\
-- The whole schema of chatturn, for a new database; running it again does nothing.
--
-- It exists so that a chat turn survives whatever happens to the worker that runs it:
--   durable_runs    one row a run: its identity, its status, and the lease that says who may write it
--   durable_steps   one row a checkpoint of a run; a chat turn's first is the turn, its result the answer
--   durable_events  what was emitted under a key of a run; the first emit wins
--   chat_*          what a chat turn adds: who asked what, the log of lines, messages, hook calls, usage
-- The durable_* tables are agent-runtime's version 1 exactly; durable_runs has a few columns more, from epoch on.
-- All timestamps are UTC text of 24 characters, YYYY-MM-DDTHH:MM:SS.mmmZ, from the database's own clock.
--
-- An existing database is brought here by chatturn.database.migration, which adds the columns that it lacks and
-- then applies this; or by the numbered steps in migrations/, which end in this same schema.
-- Apply it statement by statement: D1's exec() splits on newlines.
-- Its source is src/chatturn/database/schema.py; `make schema` writes schema.sql from there.

CREATE TABLE IF NOT EXISTS durable_schema_info (
  version INTEGER PRIMARY KEY,
  applied_at TEXT NOT NULL
);

CREATE TABLE IF NOT EXISTS durable_runs (
  run_id TEXT PRIMARY KEY,
  manifest_hash TEXT NOT NULL,          -- another manifest under the same id is refused
  project_id TEXT NOT NULL,
  scenario_id TEXT,
  status TEXT NOT NULL CHECK (status IN ('pending', 'running', 'completed', 'failed', 'suspended')),
  created_at TEXT NOT NULL,
  updated_at TEXT NOT NULL,
  completed_at TEXT,                    -- when it ended, well or not
  lease_holder_id TEXT,                 -- one claim's holder; null: nobody
  lease_expires_at TEXT,                -- from then on anybody may claim the run
  outcome_json TEXT,                    -- {"pass"?, "score"?, "notes"?, "metadata"?}
  step_count INTEGER NOT NULL DEFAULT 0,
  epoch INTEGER NOT NULL DEFAULT 0,     -- how often it was claimed: the fencing token of every write
  idle_attempts INTEGER NOT NULL DEFAULT 0,  -- claims since it last came further, those that ended in a wait left out
  attempts INTEGER NOT NULL DEFAULT 0,  -- all claims at what it does now, those that ended in a wait left out
  key_part TEXT                         -- random; in every key that leaves the system; null: the keys of its name alone
);

CREATE TABLE IF NOT EXISTS durable_steps (
  run_id TEXT NOT NULL,
  step_index INTEGER NOT NULL,
  intent TEXT NOT NULL,
  kind TEXT NOT NULL,
  input_hash TEXT NOT NULL DEFAULT '',  -- of what the step was given; '' where it was not said
  status TEXT NOT NULL CHECK (status IN ('pending', 'running', 'completed', 'failed')),
  attempts INTEGER NOT NULL DEFAULT 0,  -- how often it was begun
  result_json TEXT,                     -- what it returned; a chat turn's: {"finalText", …}
  error_json TEXT,
  started_at TEXT,
  completed_at TEXT,
  PRIMARY KEY (run_id, step_index)
);

CREATE TABLE IF NOT EXISTS durable_events (
  run_id TEXT NOT NULL,
  key TEXT NOT NULL,
  payload_json TEXT,
  emitted_at TEXT NOT NULL,
  PRIMARY KEY (run_id, key)
);

CREATE INDEX IF NOT EXISTS idx_durable_runs_project_status ON durable_runs (project_id, status);
CREATE INDEX IF NOT EXISTS idx_durable_runs_lease_expires ON durable_runs (lease_expires_at);
CREATE INDEX IF NOT EXISTS idx_durable_steps_status ON durable_steps (run_id, status);
-- For retention: what ended first is deleted first.
CREATE INDEX IF NOT EXISTS idx_durable_runs_completed ON durable_runs (completed_at) WHERE completed_at IS NOT NULL;

INSERT OR IGNORE INTO durable_schema_info (version, applied_at)
VALUES (1, strftime('%Y-%m-%dT%H:%M:%fZ', 'now'));

-- What a suspended run waits for: an event, a moment, or whichever comes first.
CREATE TABLE IF NOT EXISTS durable_waits (
  run_id TEXT PRIMARY KEY,
  step_index INTEGER NOT NULL CHECK (step_index >= 0),  -- the step that waits
  event_key TEXT,                       -- the event's key; null: a moment only
  wake_at TEXT NOT NULL CHECK (length(wake_at) = 24)    -- when the run goes on even if no event came
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS idx_durable_waits_wake ON durable_waits (wake_at);

-- The threads: whose each is, and how often it has changed.
CREATE TABLE IF NOT EXISTS chat_sessions (
  tenant_id TEXT NOT NULL,
  session_id TEXT NOT NULL,
  owner_id TEXT NOT NULL,               -- the subject of the token that claimed its first turn
  created_at TEXT NOT NULL CHECK (length(created_at) = 24),
  revision INTEGER NOT NULL DEFAULT 0 CHECK (revision >= 0),          -- how often what a reader sees of it has changed
  title TEXT,                           -- as its users call it; null: its first question
  active_at TEXT CHECK (length(active_at) = 24),        -- when a turn of it was asked last; null: since it was begun
  PRIMARY KEY (tenant_id, session_id)
) STRICT, WITHOUT ROWID;

-- What users think of answers.
CREATE TABLE IF NOT EXISTS chat_feedback (
  run_id TEXT NOT NULL,                 -- the version of the turn
  user_id TEXT NOT NULL,                -- who says so
  rating TEXT CHECK (rating IN ('up', 'down')),         -- null: a comment alone
  comment TEXT,
  created_at TEXT NOT NULL CHECK (length(created_at) = 24),
  updated_at TEXT NOT NULL CHECK (length(updated_at) = 24),
  PRIMARY KEY (run_id, user_id)
) STRICT, WITHOUT ROWID;

-- Wishes to delete all sessions of a user or a tenant, as of then, that are not fulfilled yet.
CREATE TABLE IF NOT EXISTS chat_deletions (
  tenant_id TEXT NOT NULL,
  user_id TEXT NOT NULL,                -- '': everybody's
  asked_at TEXT NOT NULL CHECK (length(asked_at) = 24),
  PRIMARY KEY (tenant_id, user_id)
) STRICT, WITHOUT ROWID;

-- One turn of a thread: who asked what.  Its progress is its run's, in durable_runs.
CREATE TABLE IF NOT EXISTS chat_turns (
  run_id TEXT PRIMARY KEY,              -- chat:<tenant>:<session>:<turn_index>, parts percent-encoded
  tenant_id TEXT NOT NULL,              -- from the token, never from the request
  session_id TEXT NOT NULL,             -- the thread
  user_id TEXT NOT NULL,                -- the token's subject at the latest attempt
  turn_index INTEGER NOT NULL CHECK (turn_index >= 0),  -- 0-based position in the thread
  user_message TEXT NOT NULL,           -- what the user said
  model TEXT,                           -- the model asked for; null: the deployment's
  metadata_json TEXT,                   -- the request's metadata, JSON
  attempt INTEGER NOT NULL CHECK (attempt >= 1),        -- the latest attempt, equal to the run's epoch
  cancel_requested_at TEXT CHECK (length(cancel_requested_at) = 24),  -- when somebody asked to stop it
  trace_id TEXT,                        -- of all attempts at what is asked now, 32 hex digits; null: not traced
  created_at TEXT NOT NULL CHECK (length(created_at) = 24),           -- UTC, YYYY-MM-DDTHH:MM:SS.mmmZ
  updated_at TEXT NOT NULL CHECK (length(updated_at) = 24),           -- the latest claim
  log_from INTEGER NOT NULL DEFAULT 0 CHECK (log_from >= 0),          -- seq from which on the log is this answer's
  suspensions INTEGER NOT NULL DEFAULT 0 CHECK (suspensions >= 0),    -- attempts that ended in a wait
  cancelled_at TEXT CHECK (length(cancelled_at) = 24),                -- when it ended as cancelled; null: it did not
  followed_until TEXT CHECK (length(followed_until) = 24),            -- until when a reader in another isolate counts
  first_attempt INTEGER NOT NULL DEFAULT 1 CHECK (first_attempt >= 1),  -- the first at what is asked now
  manifest_hash TEXT NOT NULL DEFAULT '',                             -- what is asked now, as its run has it
  traceparent TEXT CHECK (length(traceparent) = 55),                  -- the turn's span, as W3C Trace Context writes it
  caller_span_id TEXT CHECK (length(caller_span_id) = 16),            -- the span around it; null: it is the first
  traced_by INTEGER CHECK (traced_by >= 1),                           -- the attempt that sent it; null: none yet
  history_json TEXT,                    -- the conversation before, if the request brings one; JSON
  log_compact INTEGER NOT NULL DEFAULT 0 CHECK (log_compact IN (0, 1)),  -- 1: its log is stored in its short form
  parameters_json TEXT,                 -- how the model is to answer, if the request says so; JSON
  finish_reason TEXT,                   -- why its answer ended: stop, length, …; null: it has none, or nobody said
  retry_at TEXT CHECK (length(retry_at) = 24),          -- after a failure: when it may be tried again; null: at once
  version INTEGER NOT NULL DEFAULT 1 CHECK (version >= 1),            -- which version of the turn it is
  replaces INTEGER CHECK (replaces >= 1),               -- the version that it takes the place of
  replace_kind TEXT CHECK (replace_kind IN ('regenerate', 'edit')),   -- how
  parent_index INTEGER CHECK (parent_index >= 0),       -- the turn that it follows; null: none, or the one before
  parent_version INTEGER CHECK (parent_version >= 1),   -- the version of that; null: the first
  asked_at_index INTEGER CHECK (asked_at_index >= 0),   -- where it was asked, if another turn had that place
  parts_json TEXT,                      -- the message's parts, if it is more than text; JSON
  kept_json TEXT,                       -- what the answer's API wants back with it in later turns, and which; JSON
  reserved_micro_usd INTEGER NOT NULL DEFAULT 0 CHECK (reserved_micro_usd >= 0),  -- for budgets, while it runs
  log_kept INTEGER NOT NULL DEFAULT 1 CHECK (log_kept IN (0, 1))      -- 0: it was looked at when it was old
) STRICT, WITHOUT ROWID;
-- For lists of one tenant's turns, the latest first.
CREATE INDEX IF NOT EXISTS idx_chat_turns_tenant ON chat_turns (tenant_id, created_at, run_id);

-- The log of a turn: consecutive lines of NDJSON text as one row, so that reading it copies strings.
CREATE TABLE IF NOT EXISTS chat_segments (
  run_id TEXT NOT NULL,
  first_seq INTEGER NOT NULL CHECK (first_seq >= 0),    -- seq of the first line
  last_seq INTEGER NOT NULL,                            -- seq of the last line
  attempt INTEGER NOT NULL CHECK (attempt >= 1),        -- which attempt said it
  lines TEXT NOT NULL,                                  -- every line ends with LF; or their short form, after a ~
  ended INTEGER NOT NULL DEFAULT 0 CHECK (ended IN (0, 1)),           -- 1: its last line is the attempt's terminal one
  PRIMARY KEY (run_id, first_seq),
  CHECK (last_seq >= first_seq)
) STRICT, WITHOUT ROWID;

-- The threads as the model and the user saw them; a turn's two rows are written with its finish.
CREATE TABLE IF NOT EXISTS chat_messages (
  tenant_id TEXT NOT NULL,
  session_id TEXT NOT NULL,
  turn_index INTEGER NOT NULL CHECK (turn_index >= 0),
  role TEXT NOT NULL CHECK (role IN ('user', 'assistant')),
  content TEXT NOT NULL,                -- the assistant's after transform_final_text
  run_id TEXT NOT NULL,
  created_at TEXT NOT NULL CHECK (length(created_at) = 24),
  version INTEGER NOT NULL DEFAULT 1 CHECK (version >= 1),            -- the version of the turn that counts
  breaks INTEGER NOT NULL DEFAULT 0 CHECK (breaks IN (0, 1)),         -- 1: it follows a version that does not count
  PRIMARY KEY (tenant_id, session_id, turn_index, role)
) STRICT, WITHOUT ROWID;

-- Hook calls that must still happen; written with what they tell of, so that no crash can lose one.
CREATE TABLE IF NOT EXISTS chat_outbox (
  run_id TEXT NOT NULL,
  hook TEXT NOT NULL CHECK (hook IN ('persist_assistant_message', 'on_turn_complete')
    OR hook GLOB 'on_thread_changed/[1-9]*'),           -- behind the slash the session's revision
  attempt INTEGER NOT NULL CHECK (attempt >= 1),        -- which attempt's answer it is about
  status TEXT NOT NULL CHECK (status IN ('pending', 'done', 'given_up')),
  failures INTEGER NOT NULL DEFAULT 0,  -- calls that have failed
  next_call_at TEXT NOT NULL CHECK (length(next_call_at) = 24),  -- nobody else calls it before
  last_error TEXT,                      -- why the latest call failed; for operators
  created_at TEXT NOT NULL CHECK (length(created_at) = 24),
  payload_json TEXT,                    -- which turns were detached or came back; null: it is about the answer
  PRIMARY KEY (run_id, hook)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS idx_chat_outbox_due ON chat_outbox (next_call_at) WHERE status = 'pending';
CREATE INDEX IF NOT EXISTS idx_chat_outbox_given_up ON chat_outbox (next_call_at) WHERE status = 'given_up';

-- The ledger: what each model call consumed, as the model reported it; null is unknown, never zero.
-- It outlives its turn.
CREATE TABLE IF NOT EXISTS chat_usage (
  run_id TEXT NOT NULL,
  attempt INTEGER NOT NULL CHECK (attempt >= 1),
  call_index INTEGER NOT NULL CHECK (call_index >= 0),  -- 0-based, within the attempt
  model TEXT,                           -- who answered; until that is known, who was asked
  tokens_in INTEGER CHECK (tokens_in >= 0),
  tokens_out INTEGER CHECK (tokens_out >= 0),
  tokens_cached INTEGER CHECK (tokens_cached >= 0),
  tokens_reasoning INTEGER CHECK (tokens_reasoning >= 0),
  finish_reason TEXT,
  recorded_at TEXT NOT NULL CHECK (length(recorded_at) = 24),           -- when it was first on record
  tenant_id TEXT NOT NULL DEFAULT '',
  session_id TEXT NOT NULL DEFAULT '',
  outcome TEXT NOT NULL DEFAULT 'completed'             -- lost: its worker was; it may even not have been made
    CHECK (outcome IN ('running', 'completed', 'failed', 'cancelled', 'lost')),
  wasted INTEGER NOT NULL DEFAULT 0 CHECK (wasted IN (0, 1)),           -- 1: in no answer, or not yet
  estimated_tokens_out INTEGER CHECK (estimated_tokens_out >= 0),       -- pieces that came, where no count did
  cost_micro_usd INTEGER CHECK (cost_micro_usd >= 0),   -- millionths of a dollar
  tries INTEGER CHECK (tries >= 0),     -- requests sent for it
  headers_ms INTEGER CHECK (headers_ms >= 0),           -- from the call's beginning, as the next two
  first_token_ms INTEGER CHECK (first_token_ms >= 0),
  duration_ms INTEGER CHECK (duration_ms >= 0),
  error_code TEXT,                      -- why it failed, or that its worker had lost the turn
  request_id TEXT,                      -- the idempotency key of its requests; null: the worker died before
  estimated_cost_micro_usd INTEGER CHECK (estimated_cost_micro_usd >= 0),  -- for budgets, where nobody knows the cost
  PRIMARY KEY (run_id, attempt, call_index)
) STRICT, WITHOUT ROWID;

-- Sessions of agents' backends, and what was told in them; agent_runtime's, no turn needs them.
CREATE TABLE IF NOT EXISTS runtime_sessions (
  tenant_id TEXT NOT NULL,              -- '' where there is only one
  session_id TEXT NOT NULL,
  backend TEXT NOT NULL,                -- the kind of backend; another one is refused
  status TEXT NOT NULL CHECK (status IN ('active', 'completed', 'failed', 'aborted')),
  resume_token TEXT,                    -- a credential of the backend's
  metadata_json TEXT,                   -- the backend's own, JSON
  created_at TEXT NOT NULL CHECK (length(created_at) = 24),
  updated_at TEXT NOT NULL CHECK (length(updated_at) = 24),
  PRIMARY KEY (tenant_id, session_id)
) STRICT, WITHOUT ROWID;
-- For retention: what was left longest ago is deleted first.
CREATE INDEX IF NOT EXISTS idx_runtime_sessions_idle ON runtime_sessions (tenant_id, updated_at);

CREATE TABLE IF NOT EXISTS runtime_session_events (
  tenant_id TEXT NOT NULL,
  session_id TEXT NOT NULL,
  seq INTEGER NOT NULL CHECK (seq >= 0),                -- from 0, without gaps
  event_json TEXT NOT NULL,             -- without a resume token
  recorded_at TEXT NOT NULL CHECK (length(recorded_at) = 24),
  PRIMARY KEY (tenant_id, session_id, seq)
) STRICT, WITHOUT ROWID;

-- For rows from before there were these columns: a log was stored with the end of its attempt.
UPDATE chat_segments SET ended = 1
WHERE (SELECT max(version) FROM durable_schema_info) < 102 AND NOT EXISTS (
  SELECT 1 FROM chat_segments AS s
  WHERE s.run_id = chat_segments.run_id AND s.attempt = chat_segments.attempt
    AND s.first_seq > chat_segments.first_seq);
UPDATE chat_turns SET
  manifest_hash = coalesce((SELECT r.manifest_hash FROM durable_runs AS r WHERE r.run_id = chat_turns.run_id), ''),
  suspensions = (SELECT count(*) FROM chat_segments AS s
                 WHERE s.run_id = chat_turns.run_id AND s.lines LIKE '%{"type":"session.run.suspended"%')
WHERE (SELECT max(version) FROM durable_schema_info) < 102 AND EXISTS (
  SELECT 1 FROM durable_runs AS r WHERE r.run_id = chat_turns.run_id AND r.status <> 'completed');
UPDATE chat_turns SET
  manifest_hash = coalesce((SELECT r.manifest_hash FROM durable_runs AS r WHERE r.run_id = chat_turns.run_id), '')
WHERE (SELECT max(version) FROM durable_schema_info) < 102 AND manifest_hash = '';
-- For the sweep, which makes the logs short of turns that are over.
CREATE INDEX IF NOT EXISTS idx_chat_turns_loose ON chat_turns (updated_at) WHERE log_compact = 0;
-- For the sweep, which gives old logs up.
CREATE INDEX IF NOT EXISTS idx_chat_turns_kept ON chat_turns (updated_at) WHERE log_kept = 1;
-- For a tenant's usage of a period.
CREATE INDEX IF NOT EXISTS idx_chat_usage_tenant ON chat_usage (tenant_id, recorded_at);
-- Whose it was, for rows from before that was kept.
UPDATE chat_usage SET
  tenant_id = (SELECT t.tenant_id FROM chat_turns AS t WHERE t.run_id = chat_usage.run_id),
  session_id = (SELECT t.session_id FROM chat_turns AS t WHERE t.run_id = chat_usage.run_id)
WHERE tenant_id = '' AND EXISTS (SELECT 1 FROM chat_turns AS t WHERE t.run_id = chat_usage.run_id);

-- Where a thread ends: what stands from the first of them on is detached.
CREATE INDEX IF NOT EXISTS idx_chat_messages_breaks ON chat_messages (tenant_id, session_id, turn_index)
WHERE breaks = 1;
-- For whether a session is busy.
CREATE INDEX IF NOT EXISTS idx_durable_runs_open ON durable_runs (run_id) WHERE status IN ('pending', 'running');
CREATE INDEX IF NOT EXISTS idx_durable_runs_suspended ON durable_runs (run_id) WHERE status = 'suspended';
-- Workers of an earlier version name it, which serve the same database for a while.
CREATE INDEX IF NOT EXISTS idx_durable_runs_failed ON durable_runs (run_id) WHERE status = 'failed';
-- For a session's turns without an answer, the latest first: failed runs by the digits at the end of their ids.
CREATE INDEX IF NOT EXISTS idx_durable_runs_failed_number ON durable_runs (
  rtrim(run_id, '0123456789'), CAST(substr(run_id, length(rtrim(run_id, '0123456789')) + 1) AS INTEGER))
WHERE status = 'failed';
-- For messages that were asked at another index than their own.
CREATE INDEX IF NOT EXISTS idx_chat_turns_moved ON chat_turns (tenant_id, session_id, asked_at_index)
WHERE asked_at_index IS NOT NULL;

-- A wait is due from the moment on at which its event came, and is over when its run goes on.  Triggers keep both, so
-- that the sweep reads due waits only, and so that it also holds for workers of an earlier version.
DELETE FROM durable_waits WHERE (SELECT max(version) FROM durable_schema_info) < 120
  AND NOT EXISTS (SELECT 1 FROM durable_runs AS r WHERE r.run_id = durable_waits.run_id AND r.status = 'suspended');
UPDATE durable_waits SET wake_at = min(wake_at, (
  SELECT emitted_at FROM durable_events AS e WHERE e.run_id = durable_waits.run_id AND e.key = durable_waits.event_key))
WHERE (SELECT max(version) FROM durable_schema_info) < 120 AND EXISTS (
  SELECT 1 FROM durable_events AS e WHERE e.run_id = durable_waits.run_id AND e.key = durable_waits.event_key);
CREATE TRIGGER IF NOT EXISTS durable_waits_event_came AFTER INSERT ON durable_events BEGIN
  UPDATE durable_waits SET wake_at = NEW.emitted_at
  WHERE run_id = NEW.run_id AND event_key = NEW.key AND wake_at > NEW.emitted_at;
END;
CREATE TRIGGER IF NOT EXISTS durable_waits_event_was_there AFTER INSERT ON durable_waits
WHEN EXISTS (SELECT 1 FROM durable_events WHERE run_id = NEW.run_id AND key = NEW.event_key) BEGIN
  UPDATE durable_waits SET wake_at = min(wake_at, (
    SELECT emitted_at FROM durable_events WHERE run_id = NEW.run_id AND key = NEW.event_key))
  WHERE run_id = NEW.run_id;
END;
CREATE TRIGGER IF NOT EXISTS durable_waits_over AFTER UPDATE OF status ON durable_runs
WHEN OLD.status = 'suspended' AND NEW.status <> 'suspended' BEGIN
  DELETE FROM durable_waits WHERE run_id = NEW.run_id;
END;
"""
    + SUMS_TABLES
    + fill_sums("(SELECT max(version) FROM durable_schema_info) < 114")
    + SUMS_TRIGGERS
    + """
-- What each tenant, and each of its users, has begun and stored on a day.
CREATE TABLE IF NOT EXISTS chat_allowances (
  tenant_id TEXT NOT NULL,
  user_id TEXT NOT NULL,                -- '' for all of the tenant's together
  day TEXT NOT NULL CHECK (length(day) = 10),           -- YYYY-MM-DD, UTC
  turns INTEGER NOT NULL DEFAULT 0,     -- begun
  bytes INTEGER NOT NULL DEFAULT 0,     -- of requests, answers' logs and events
  PRIMARY KEY (tenant_id, user_id, day)
) STRICT, WITHOUT ROWID;
-- For lists of sessions, the latest active first.
CREATE INDEX IF NOT EXISTS idx_chat_sessions_owner
ON chat_sessions (tenant_id, owner_id, coalesce(active_at, created_at) DESC, session_id);
CREATE INDEX IF NOT EXISTS idx_chat_sessions_tenant
ON chat_sessions (tenant_id, coalesce(active_at, created_at) DESC, session_id);
-- Of turns from before there was a table of sessions.
INSERT OR IGNORE INTO chat_sessions (tenant_id, session_id, owner_id, created_at)
SELECT tenant_id, session_id, user_id, created_at FROM (
  SELECT tenant_id, session_id, user_id, created_at, min(turn_index) FROM chat_turns GROUP BY tenant_id, session_id)
WHERE (SELECT max(version) FROM durable_schema_info) < 115;

-- For which run a client's tool was asked for.
CREATE INDEX IF NOT EXISTS idx_durable_steps_tool ON durable_steps (intent)
WHERE intent >= 'event:tool:' AND intent < 'event:tool;';

-- Not for a database that the migrations have not reached: it still lacks a column.
INSERT OR IGNORE INTO durable_schema_info (version, applied_at)
SELECT 120, strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
WHERE EXISTS (SELECT 1 FROM pragma_table_info('durable_runs') WHERE name = 'epoch')
  AND EXISTS (SELECT 1 FROM pragma_table_info('chat_usage') WHERE name = 'outcome')
  AND EXISTS (SELECT 1 FROM pragma_table_info('chat_outbox') WHERE name = 'payload_json');
"""
)


def schema_statements(text: str = DURABLE_SCHEMA_SQL) -> list[str]:
    """Return the statements of the schema, or of another script of ours, in order, with the comments inside them."""
    statements: list[str] = []
    pending: list[str] = []
    for line in text.splitlines():
        code = line.partition("--")[0].rstrip()
        if code or pending:
            pending.append(line)
        inside = pending and pending[0].startswith("CREATE TRIGGER") and code != "END;"
        if code.endswith(";") and not inside:
            statements.append("\n".join(pending))
            pending = []
    return statements


def schema_triggers() -> list[str]:
    """Return the names of the schema's triggers."""
    return _TRIGGER.findall(DURABLE_SCHEMA_SQL)


def schema_columns() -> dict[str, list[str]]:
    """Return the columns of every table of the schema."""
    tables: dict[str, list[str]] = {}
    for statement in schema_statements():
        if (made := _TABLE.search(statement)) is not None:
            tables[made[1]] = _COLUMN.findall(statement)
    return tables
