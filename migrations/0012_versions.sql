-- A turn may have several versions, each a run; the messages of a turn are those of the version that counts.

ALTER TABLE chat_turns ADD COLUMN version INTEGER NOT NULL DEFAULT 1 CHECK (version >= 1);
ALTER TABLE chat_turns ADD COLUMN replaces INTEGER CHECK (replaces >= 1);
ALTER TABLE chat_turns ADD COLUMN replace_kind TEXT CHECK (replace_kind IN ('regenerate', 'edit'));
ALTER TABLE chat_turns ADD COLUMN parent_index INTEGER CHECK (parent_index >= 0);
ALTER TABLE chat_turns ADD COLUMN parent_version INTEGER CHECK (parent_version >= 1);
ALTER TABLE chat_messages ADD COLUMN version INTEGER NOT NULL DEFAULT 1 CHECK (version >= 1);
ALTER TABLE chat_messages ADD COLUMN breaks INTEGER NOT NULL DEFAULT 0 CHECK (breaks IN (0, 1));

CREATE INDEX idx_chat_messages_breaks ON chat_messages (tenant_id, session_id, turn_index) WHERE breaks = 1;
CREATE INDEX idx_durable_runs_open ON durable_runs (run_id) WHERE status IN ('pending', 'running');

INSERT OR IGNORE INTO durable_schema_info (version, applied_at)
VALUES (110, strftime('%Y-%m-%dT%H:%M:%fZ', 'now'));
