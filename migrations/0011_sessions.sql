-- Whose a session is, and how often it has changed; why an answer ended; when a turn that failed may be tried again.

CREATE TABLE chat_sessions (
  tenant_id TEXT NOT NULL,
  session_id TEXT NOT NULL,
  owner_id TEXT NOT NULL,               -- the subject of the token that claimed its first turn
  created_at TEXT NOT NULL CHECK (length(created_at) = 24),
  revision INTEGER NOT NULL DEFAULT 0 CHECK (revision >= 0),          -- how often what a reader sees of it has changed
  PRIMARY KEY (tenant_id, session_id)
) STRICT, WITHOUT ROWID;

ALTER TABLE chat_turns ADD COLUMN finish_reason TEXT;
ALTER TABLE chat_turns ADD COLUMN retry_at TEXT CHECK (length(retry_at) = 24);

INSERT OR IGNORE INTO durable_schema_info (version, applied_at)
VALUES (109, strftime('%Y-%m-%dT%H:%M:%fZ', 'now'));
