-- chatturn's own: the fencing token of the documents' runs, and the chat tables.

-- How often the run was claimed.  Every write names the epoch of its claim, so a worker whose lease was taken
-- over changes nothing.  0: never claimed by this engine (a run of the documents' own).
ALTER TABLE durable_runs ADD COLUMN epoch INTEGER NOT NULL DEFAULT 0;

-- What a suspended run waits for: an event, a moment, or whichever comes first.
CREATE TABLE IF NOT EXISTS durable_waits (
  run_id TEXT PRIMARY KEY,
  step_index INTEGER NOT NULL CHECK (step_index >= 0),  -- the step that waits
  event_key TEXT,                       -- the event's key; null: a moment only
  wake_at TEXT NOT NULL CHECK (length(wake_at) = 24)    -- when the run goes on even if no event came
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS idx_durable_waits_wake ON durable_waits (wake_at);

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
  trace_id TEXT,                        -- of the latest attempt, 32 hex digits
  created_at TEXT NOT NULL CHECK (length(created_at) = 24),           -- UTC, YYYY-MM-DDTHH:MM:SS.mmmZ
  updated_at TEXT NOT NULL CHECK (length(updated_at) = 24)            -- the latest claim
) STRICT, WITHOUT ROWID;

-- The log of a turn: consecutive lines of NDJSON text as one row, so that reading it copies strings.
CREATE TABLE IF NOT EXISTS chat_segments (
  run_id TEXT NOT NULL,
  first_seq INTEGER NOT NULL CHECK (first_seq >= 0),    -- seq of the first line
  last_seq INTEGER NOT NULL,                            -- seq of the last line
  attempt INTEGER NOT NULL CHECK (attempt >= 1),        -- which attempt said it
  lines TEXT NOT NULL,                                  -- every line ends with LF
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
  PRIMARY KEY (tenant_id, session_id, turn_index, role)
) STRICT, WITHOUT ROWID;

-- Hook calls that must still happen; written with the finish, so that no crash can lose one.
CREATE TABLE IF NOT EXISTS chat_outbox (
  run_id TEXT NOT NULL,
  hook TEXT NOT NULL CHECK (hook IN ('persist_assistant_message', 'on_turn_complete')),
  attempt INTEGER NOT NULL CHECK (attempt >= 1),        -- which attempt's answer it is about
  status TEXT NOT NULL CHECK (status IN ('pending', 'done', 'given_up')),
  failures INTEGER NOT NULL DEFAULT 0,  -- calls that have failed
  next_call_at TEXT NOT NULL CHECK (length(next_call_at) = 24),  -- nobody else calls it before
  last_error TEXT,                      -- why the latest call failed; for operators
  created_at TEXT NOT NULL CHECK (length(created_at) = 24),
  PRIMARY KEY (run_id, hook)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS idx_chat_outbox_due ON chat_outbox (next_call_at) WHERE status = 'pending';

-- What each model call consumed, as the model reported it; null is unknown, never zero.
CREATE TABLE IF NOT EXISTS chat_usage (
  run_id TEXT NOT NULL,
  attempt INTEGER NOT NULL CHECK (attempt >= 1),
  call_index INTEGER NOT NULL CHECK (call_index >= 0),  -- 0-based, within the attempt
  model TEXT,
  tokens_in INTEGER CHECK (tokens_in >= 0),
  tokens_out INTEGER CHECK (tokens_out >= 0),
  tokens_cached INTEGER CHECK (tokens_cached >= 0),
  tokens_reasoning INTEGER CHECK (tokens_reasoning >= 0),
  finish_reason TEXT,
  recorded_at TEXT NOT NULL CHECK (length(recorded_at) = 24),
  PRIMARY KEY (run_id, attempt, call_index)
) STRICT, WITHOUT ROWID;

INSERT OR IGNORE INTO durable_schema_info (version, applied_at)
VALUES (100, strftime('%Y-%m-%dT%H:%M:%fZ', 'now'));
