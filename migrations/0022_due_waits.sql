-- A sweep reads the waits that are due and no others, and a page of messages the latest failed turns of its session.

CREATE INDEX idx_durable_runs_failed_number ON durable_runs (
  rtrim(run_id, '0123456789'), CAST(substr(run_id, length(rtrim(run_id, '0123456789')) + 1) AS INTEGER))
WHERE status = 'failed';

-- A wait is due from the moment on at which its event came, and is over when its run goes on.  Triggers keep both, so
-- that the sweep reads due waits only, and so that it also holds for workers of an earlier version.
DELETE FROM durable_waits WHERE NOT EXISTS (
  SELECT 1 FROM durable_runs AS r WHERE r.run_id = durable_waits.run_id AND r.status = 'suspended');
UPDATE durable_waits SET wake_at = min(wake_at, (
  SELECT emitted_at FROM durable_events AS e WHERE e.run_id = durable_waits.run_id AND e.key = durable_waits.event_key))
WHERE EXISTS (
  SELECT 1 FROM durable_events AS e WHERE e.run_id = durable_waits.run_id AND e.key = durable_waits.event_key);
CREATE TRIGGER durable_waits_event_came AFTER INSERT ON durable_events BEGIN
  UPDATE durable_waits SET wake_at = NEW.emitted_at
  WHERE run_id = NEW.run_id AND event_key = NEW.key AND wake_at > NEW.emitted_at;
END;
CREATE TRIGGER durable_waits_event_was_there AFTER INSERT ON durable_waits
WHEN EXISTS (SELECT 1 FROM durable_events WHERE run_id = NEW.run_id AND key = NEW.event_key) BEGIN
  UPDATE durable_waits SET wake_at = min(wake_at, (
    SELECT emitted_at FROM durable_events WHERE run_id = NEW.run_id AND key = NEW.event_key))
  WHERE run_id = NEW.run_id;
END;
CREATE TRIGGER durable_waits_over AFTER UPDATE OF status ON durable_runs
WHEN OLD.status = 'suspended' AND NEW.status <> 'suspended' BEGIN
  DELETE FROM durable_waits WHERE run_id = NEW.run_id;
END;

INSERT OR IGNORE INTO durable_schema_info (version, applied_at)
VALUES (120, strftime('%Y-%m-%dT%H:%M:%fZ', 'now'));
