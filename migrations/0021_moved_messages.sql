-- A message that was asked at the next index is found by the one that it was sent to, however long the session is.

CREATE INDEX idx_chat_turns_moved ON chat_turns (tenant_id, session_id, asked_at_index)
WHERE asked_at_index IS NOT NULL;

INSERT OR IGNORE INTO durable_schema_info (version, applied_at)
VALUES (119, strftime('%Y-%m-%dT%H:%M:%fZ', 'now'));
