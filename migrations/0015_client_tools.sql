-- The result of a client's tool is brought by its call's id: which run has asked for it.

CREATE INDEX idx_durable_steps_tool ON durable_steps (intent)
WHERE intent >= 'event:tool:' AND intent < 'event:tool;';

INSERT OR IGNORE INTO durable_schema_info (version, applied_at)
VALUES (113, strftime('%Y-%m-%dT%H:%M:%fZ', 'now'));
