-- How often a run was tried since it last came further, and the part of its keys that no other run has, not even one
-- of the same name after this one was deleted.

ALTER TABLE durable_runs ADD COLUMN idle_attempts INTEGER NOT NULL DEFAULT 0;
ALTER TABLE durable_runs ADD COLUMN attempts INTEGER NOT NULL DEFAULT 0;
ALTER TABLE durable_runs ADD COLUMN key_part TEXT;

INSERT OR IGNORE INTO durable_schema_info (version, applied_at)
VALUES (107, strftime('%Y-%m-%dT%H:%M:%fZ', 'now'));
