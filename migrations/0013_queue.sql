-- A turn may wait for the ones before it; a message whose place was taken is asked at the next one.

ALTER TABLE chat_turns ADD COLUMN asked_at_index INTEGER CHECK (asked_at_index >= 0);

CREATE INDEX idx_durable_runs_suspended ON durable_runs (run_id) WHERE status = 'suspended';

INSERT OR IGNORE INTO durable_schema_info (version, applied_at)
VALUES (111, strftime('%Y-%m-%dT%H:%M:%fZ', 'now'));
