-- What a log needs that is stored while its turn runs, and a turn that may be cancelled and followed.

ALTER TABLE chat_turns ADD COLUMN log_from INTEGER NOT NULL DEFAULT 0 CHECK (log_from >= 0);
ALTER TABLE chat_turns ADD COLUMN suspensions INTEGER NOT NULL DEFAULT 0 CHECK (suspensions >= 0);
ALTER TABLE chat_turns ADD COLUMN cancelled_at TEXT CHECK (length(cancelled_at) = 24);
ALTER TABLE chat_turns ADD COLUMN followed_at TEXT CHECK (length(followed_at) = 24);
ALTER TABLE chat_segments ADD COLUMN ended INTEGER NOT NULL DEFAULT 0 CHECK (ended IN (0, 1));
CREATE INDEX IF NOT EXISTS idx_chat_outbox_given_up ON chat_outbox (next_call_at) WHERE status = 'given_up';

INSERT OR IGNORE INTO durable_schema_info (version, applied_at)
VALUES (102, strftime('%Y-%m-%dT%H:%M:%fZ', 'now'));
