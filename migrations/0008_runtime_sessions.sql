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

INSERT OR IGNORE INTO durable_schema_info (version, applied_at)
VALUES (106, strftime('%Y-%m-%dT%H:%M:%fZ', 'now'));
