-- Messages that are more than text, and what an API wants back with its answer.

ALTER TABLE chat_turns ADD COLUMN parts_json TEXT;
ALTER TABLE chat_turns ADD COLUMN kept_json TEXT;

INSERT OR IGNORE INTO durable_schema_info (version, applied_at)
VALUES (112, strftime('%Y-%m-%dT%H:%M:%fZ', 'now'));
