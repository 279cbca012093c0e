-- How the model is to answer, where the request says so.

ALTER TABLE chat_turns ADD COLUMN parameters_json TEXT;

INSERT OR IGNORE INTO durable_schema_info (version, applied_at)
VALUES (108, strftime('%Y-%m-%dT%H:%M:%fZ', 'now'));
