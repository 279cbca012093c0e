-- Whose a session is, and how often it has changed.

CREATE TABLE chat_sessions (
  tenant_id TEXT NOT NULL,
  session_id TEXT NOT NULL,
  owner_id TEXT NOT NULL,               -- the subject of the token that claimed its first turn
  created_at TEXT NOT NULL CHECK (length(created_at) = 24),
  revision INTEGER NOT NULL DEFAULT 0 CHECK (revision >= 0),          -- how often what a reader sees of it has changed
  PRIMARY KEY (tenant_id, session_id)
) STRICT, WITHOUT ROWID;

INSERT OR IGNORE INTO durable_schema_info (version, applied_at)
VALUES (109, strftime('%Y-%m-%dT%H:%M:%fZ', 'now'));
