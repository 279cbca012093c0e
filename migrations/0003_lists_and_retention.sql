-- What lists and retention look things up by; no table is new and no column.

-- For retention: what ended first is deleted first.
CREATE INDEX IF NOT EXISTS idx_durable_runs_completed ON durable_runs (completed_at) WHERE completed_at IS NOT NULL;
-- For lists of one tenant's turns, the latest first.
CREATE INDEX IF NOT EXISTS idx_chat_turns_tenant ON chat_turns (tenant_id, created_at, run_id);

INSERT OR IGNORE INTO durable_schema_info (version, applied_at)
VALUES (101, strftime('%Y-%m-%dT%H:%M:%fZ', 'now'));
