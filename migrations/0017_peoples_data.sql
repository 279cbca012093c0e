-- Sessions are listed, named, rated, exported and deleted.

ALTER TABLE chat_sessions ADD COLUMN title TEXT;
ALTER TABLE chat_sessions ADD COLUMN active_at TEXT CHECK (length(active_at) = 24);

CREATE TABLE chat_feedback (
  run_id TEXT NOT NULL,                 -- the version of the turn
  user_id TEXT NOT NULL,                -- who says so
  rating TEXT CHECK (rating IN ('up', 'down')),         -- null: a comment alone
  comment TEXT,
  created_at TEXT NOT NULL CHECK (length(created_at) = 24),
  updated_at TEXT NOT NULL CHECK (length(updated_at) = 24),
  PRIMARY KEY (run_id, user_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE chat_deletions (
  tenant_id TEXT NOT NULL,
  user_id TEXT NOT NULL,                -- '': everybody's
  asked_at TEXT NOT NULL CHECK (length(asked_at) = 24),
  PRIMARY KEY (tenant_id, user_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX idx_chat_sessions_owner
ON chat_sessions (tenant_id, owner_id, coalesce(active_at, created_at) DESC, session_id);
CREATE INDEX idx_chat_sessions_tenant
ON chat_sessions (tenant_id, coalesce(active_at, created_at) DESC, session_id);

-- Of turns from before there was a table of sessions.
INSERT OR IGNORE INTO chat_sessions (tenant_id, session_id, owner_id, created_at)
SELECT tenant_id, session_id, user_id, created_at FROM (
  SELECT tenant_id, session_id, user_id, created_at, min(turn_index) FROM chat_turns GROUP BY tenant_id, session_id);

INSERT OR IGNORE INTO durable_schema_info (version, applied_at)
VALUES (115, strftime('%Y-%m-%dT%H:%M:%fZ', 'now'));
