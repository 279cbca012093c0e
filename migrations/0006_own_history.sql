-- The conversation before a turn, where the request brings its own: an OpenAI client sends all of it each time.

ALTER TABLE chat_turns ADD COLUMN history_json TEXT;

INSERT OR IGNORE INTO durable_schema_info (version, applied_at)
VALUES (104, strftime('%Y-%m-%dT%H:%M:%fZ', 'now'));
