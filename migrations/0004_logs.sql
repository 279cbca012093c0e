-- What a log needs that is stored while its turn runs, and a turn that may be cancelled and followed.

ALTER TABLE chat_turns ADD COLUMN log_from INTEGER NOT NULL DEFAULT 0 CHECK (log_from >= 0);
ALTER TABLE chat_turns ADD COLUMN suspensions INTEGER NOT NULL DEFAULT 0 CHECK (suspensions >= 0);
ALTER TABLE chat_turns ADD COLUMN cancelled_at TEXT CHECK (length(cancelled_at) = 24);
ALTER TABLE chat_turns ADD COLUMN followed_until TEXT CHECK (length(followed_until) = 24);
ALTER TABLE chat_turns ADD COLUMN first_attempt INTEGER NOT NULL DEFAULT 1 CHECK (first_attempt >= 1);
ALTER TABLE chat_turns ADD COLUMN manifest_hash TEXT NOT NULL DEFAULT '';
ALTER TABLE chat_segments ADD COLUMN ended INTEGER NOT NULL DEFAULT 0 CHECK (ended IN (0, 1));
CREATE INDEX IF NOT EXISTS idx_chat_outbox_given_up ON chat_outbox (next_call_at) WHERE status = 'given_up';

-- So far a log was stored with the end of its attempt.
UPDATE chat_segments SET ended = 1 WHERE NOT EXISTS (
  SELECT 1 FROM chat_segments AS s
  WHERE s.run_id = chat_segments.run_id AND s.attempt = chat_segments.attempt
    AND s.first_seq > chat_segments.first_seq);
UPDATE chat_turns SET
  manifest_hash = coalesce((SELECT r.manifest_hash FROM durable_runs AS r WHERE r.run_id = chat_turns.run_id), ''),
  suspensions = (SELECT count(*) FROM chat_segments AS s
                 WHERE s.run_id = chat_turns.run_id AND s.lines LIKE '%{"type":"session.run.suspended"%')
WHERE EXISTS (
  SELECT 1 FROM durable_runs AS r WHERE r.run_id = chat_turns.run_id AND r.status <> 'completed');
UPDATE chat_turns SET
  manifest_hash = coalesce((SELECT r.manifest_hash FROM durable_runs AS r WHERE r.run_id = chat_turns.run_id), '')
WHERE manifest_hash = '';

INSERT OR IGNORE INTO durable_schema_info (version, applied_at)
VALUES (102, strftime('%Y-%m-%dT%H:%M:%fZ', 'now'));
