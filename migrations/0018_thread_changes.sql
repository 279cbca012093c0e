-- The outbox takes one kind of call more, which says in its payload which turns were detached or came back.
-- Another CHECK needs another table; whoever reads or writes the outbox meanwhile waits for this transaction.

DROP INDEX IF EXISTS idx_chat_outbox_due;
DROP INDEX IF EXISTS idx_chat_outbox_given_up;
ALTER TABLE chat_outbox RENAME TO chat_outbox_of_before;

CREATE TABLE chat_outbox (
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
CREATE INDEX idx_chat_outbox_due ON chat_outbox (next_call_at) WHERE status = 'pending';
CREATE INDEX idx_chat_outbox_given_up ON chat_outbox (next_call_at) WHERE status = 'given_up';

INSERT INTO chat_outbox (run_id, hook, attempt, status, failures, next_call_at, last_error, created_at)
SELECT run_id, hook, attempt, status, failures, next_call_at, last_error, created_at FROM chat_outbox_of_before;
DROP TABLE chat_outbox_of_before;

INSERT OR IGNORE INTO durable_schema_info (version, applied_at)
VALUES (116, strftime('%Y-%m-%dT%H:%M:%fZ', 'now'));
