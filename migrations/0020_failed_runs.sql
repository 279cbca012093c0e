-- The turns of a long session that have no answer are found without going through all of it.

CREATE INDEX idx_durable_runs_failed ON durable_runs (run_id) WHERE status = 'failed';

INSERT OR IGNORE INTO durable_schema_info (version, applied_at)
VALUES (118, strftime('%Y-%m-%dT%H:%M:%fZ', 'now'));
