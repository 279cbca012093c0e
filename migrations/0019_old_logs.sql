-- Logs of old turns are given up for their answers.

ALTER TABLE chat_turns ADD COLUMN log_kept INTEGER NOT NULL DEFAULT 1 CHECK (log_kept IN (0, 1));

CREATE INDEX idx_chat_turns_kept ON chat_turns (updated_at) WHERE log_kept = 1;

INSERT OR IGNORE INTO durable_schema_info (version, applied_at)
VALUES (117, strftime('%Y-%m-%dT%H:%M:%fZ', 'now'));
