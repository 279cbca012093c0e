-- Logs of turns that are over are stored in a short form; this says of which that is done.

ALTER TABLE chat_turns ADD COLUMN log_compact INTEGER NOT NULL DEFAULT 0 CHECK (log_compact IN (0, 1));

CREATE INDEX idx_chat_turns_loose ON chat_turns (updated_at) WHERE log_compact = 0;

INSERT OR IGNORE INTO durable_schema_info (version, applied_at)
VALUES (105, strftime('%Y-%m-%dT%H:%M:%fZ', 'now'));
