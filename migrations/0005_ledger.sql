-- The ledger: what became of each model call, what it cost, how long it took, and whether anybody had it.
-- And a turn's trace, which all its attempts share.

ALTER TABLE chat_usage ADD COLUMN tenant_id TEXT NOT NULL DEFAULT '';
ALTER TABLE chat_usage ADD COLUMN session_id TEXT NOT NULL DEFAULT '';
ALTER TABLE chat_usage ADD COLUMN outcome TEXT NOT NULL DEFAULT 'completed' CHECK (outcome IN ('running', 'completed', 'failed', 'cancelled', 'lost'));
ALTER TABLE chat_usage ADD COLUMN wasted INTEGER NOT NULL DEFAULT 0 CHECK (wasted IN (0, 1));
ALTER TABLE chat_usage ADD COLUMN estimated_tokens_out INTEGER CHECK (estimated_tokens_out >= 0);
ALTER TABLE chat_usage ADD COLUMN cost_micro_usd INTEGER CHECK (cost_micro_usd >= 0);
ALTER TABLE chat_usage ADD COLUMN tries INTEGER CHECK (tries >= 0);
ALTER TABLE chat_usage ADD COLUMN headers_ms INTEGER CHECK (headers_ms >= 0);
ALTER TABLE chat_usage ADD COLUMN first_token_ms INTEGER CHECK (first_token_ms >= 0);
ALTER TABLE chat_usage ADD COLUMN duration_ms INTEGER CHECK (duration_ms >= 0);
ALTER TABLE chat_usage ADD COLUMN error_code TEXT;
ALTER TABLE chat_usage ADD COLUMN request_id TEXT;
ALTER TABLE chat_turns ADD COLUMN traceparent TEXT CHECK (length(traceparent) = 55);
ALTER TABLE chat_turns ADD COLUMN caller_span_id TEXT CHECK (length(caller_span_id) = 16);
ALTER TABLE chat_turns ADD COLUMN traced_by INTEGER CHECK (traced_by >= 1);
CREATE INDEX IF NOT EXISTS idx_chat_usage_tenant ON chat_usage (tenant_id, recorded_at);
UPDATE chat_usage SET
  tenant_id = (SELECT t.tenant_id FROM chat_turns AS t WHERE t.run_id = chat_usage.run_id),
  session_id = (SELECT t.session_id FROM chat_turns AS t WHERE t.run_id = chat_usage.run_id)
WHERE tenant_id = '' AND EXISTS (SELECT 1 FROM chat_turns AS t WHERE t.run_id = chat_usage.run_id);

INSERT OR IGNORE INTO durable_schema_info (version, applied_at)
VALUES (103, strftime('%Y-%m-%dT%H:%M:%fZ', 'now'));
