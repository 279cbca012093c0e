"""
The SQL of durable runs, one constant per operation.

In every statement ``?1`` is the run, and where a lease is needed ``?2`` is its holder and ``?3`` its epoch
(null while it is being claimed).  The current time is the parameter `chatturn.database.api.NOW`.
"""

from typing import Final

__all__ = [
    "BEGIN_STEP",
    "BUMP_STEP_COUNT",
    "CAME_FURTHER",
    "CLAIM_RUN",
    "CLAIM_WHERE",
    "COMPLETE_STEP",
    "DUE_WAITS",
    "EMIT_EVENT",
    "END_RUN",
    "FAIL_FOR_GOOD",
    "FAIL_STEP",
    "FORGET_STEPS",
    "GIVE_UP_RUN",
    "GUARDED",
    "HELD",
    "IS_LATER_VERSION",
    "LEAVE_QUEUE",
    "LOAD_EVENT",
    "LOAD_RUN",
    "LOAD_STEP",
    "LOAD_STEPS",
    "MOMENT",
    "POLL_EVENT",
    "RECORD_STEP",
    "RECORD_WAIT",
    "RENEW_LEASE",
    "RENEW_WAIT",
    "REPLACE_MANIFEST",
    "STARTS",
    "STEPS_PER_PAGE",
    "SUSPEND_RUN",
]

MOMENT: Final = "strftime('%Y-%m-%dT%H:%M:%fZ', {})"
"""The SQL that turns a moment into a timestamp; ``format`` it with the moment's placeholder, such as ``?4``."""

HELD: Final = (
    "EXISTS (SELECT 1 FROM durable_runs WHERE run_id = ?1 AND lease_holder_id = ?2 AND (?3 IS NULL OR epoch = ?3))"
)
"""The fence: true while the lease in ?1, ?2, ?3 is the run's latest and has not been released."""

GUARDED: Final = "true /* what a guard asks */"
"""The text in a statement that a guard's condition replaces; see `chatturn.durable.store.Guard`."""

CLAIM_WHERE: Final = f"WHERE {GUARDED}"
"""The condition for creating a run; SQLite's grammar needs a WHERE before ON CONFLICT."""

IS_LATER_VERSION: Final = "substr(rtrim({}, '0123456789'), -1) = '~'"
"""The SQL of whether a run id, ``<run>~n``, is a later version's; a tilde elsewhere is a part of a name."""

# A later version of a turn continues the epochs of the turn's other versions: it begins at their highest,
# and at 1 or more, because agent-runtime's run of the turn, which has another id, counts as 1.
EARLIER_EPOCHS: Final = f"""
CASE WHEN {IS_LATER_VERSION.format("?1")} THEN max(1, coalesce((
  SELECT max(o.epoch) FROM durable_runs AS o WHERE o.run_id = rtrim(rtrim(?1, '0123456789'), '~')
    OR (o.run_id > rtrim(?1, '0123456789') AND o.run_id < rtrim(?1, '0123456789') || ':')), 0)) ELSE 0 END
"""

STARTS: Final = "true /* what its start waits for */"
"""The text in a claim that a queue's condition replaces; see `chatturn.durable.store.Queue`."""

# A holder is unique to one claim.  A claim that finds its own live lease on a running run changes nothing: the reply to
# an earlier try was lost, and the read after it finds the claim.  A lease that expires exactly now is free.
# `v.starts` and `excluded.attempts` are 1 if the run starts, 0 if it waits, so the condition is compiled once.  (SQLite
# does not flatten a subquery without FROM.)  Waiting is no attempt: the epoch stays, and is 0 until the first attempt.
CLAIM_RUN: Final = f"""
INSERT INTO durable_runs (run_id, manifest_hash, project_id, scenario_id, status, created_at, updated_at,
                          lease_holder_id, lease_expires_at, step_count, epoch, idle_attempts, attempts, key_part)
SELECT ?1, ?3, ?4, ?5, iif(v.starts, 'running', 'pending'), {MOMENT.format("?6")}, {MOMENT.format("?6")},
       ?2, {MOMENT.format("?6, iif(v.starts, ?7, ?11)")}, iif(v.starts, ?8, 0),
       v.starts + {EARLIER_EPOCHS}, v.starts, v.starts, ?9
FROM (SELECT ({STARTS}) IS TRUE AS starts) AS v
{CLAIM_WHERE}
ON CONFLICT (run_id) DO UPDATE SET
  status = excluded.status, updated_at = excluded.updated_at, completed_at = NULL, outcome_json = NULL,
  lease_holder_id = excluded.lease_holder_id, lease_expires_at = excluded.lease_expires_at,
  step_count = max(step_count, excluded.step_count), epoch = epoch + excluded.attempts,
  idle_attempts = idle_attempts + excluded.attempts, attempts = attempts + excluded.attempts
WHERE manifest_hash = excluded.manifest_hash
  AND status <> 'completed' AND (excluded.attempts OR status IN ('pending', 'failed'))
  AND (lease_holder_id IS NULL OR lease_expires_at IS NULL OR lease_expires_at <= excluded.updated_at
    OR (status = 'pending' AND lease_holder_id IN (?2, ?10)))
"""
"""
Start the run, or let it wait for its start.

``?7`` is the lease's term, ``?11`` the term of a wait, ``?10`` the holder of an earlier wait, or null.
"""

RENEW_WAIT: Final = f"""
UPDATE durable_runs SET lease_expires_at = {MOMENT.format("?3, ?4")}
WHERE run_id = ?1 AND status = 'pending' AND lease_holder_id = ?2
RETURNING lease_expires_at
"""
"""More columns may follow, whose own parameters start at ``?5``."""

LEAVE_QUEUE: Final = """
UPDATE durable_runs SET lease_holder_id = NULL, lease_expires_at = NULL
WHERE run_id = ?1 AND status = 'pending' AND lease_holder_id = ?2
"""
"""The run stays pending; whoever comes next may start it."""

_OTHER_MANIFEST: Final = f"""
run_id = ?1 AND {GUARDED} AND manifest_hash <> ?2
AND (lease_holder_id IS NULL OR lease_expires_at IS NULL OR lease_expires_at <= {MOMENT.format("?3")})
"""

# The condition is checked once, in REPLACE_MANIFEST, which marks the run by step_count = -1 for FORGET_STEPS.  The
# claim behind both, which has the same guards, counts the steps again.
REPLACE_MANIFEST: Final = f"""
UPDATE durable_runs SET manifest_hash = ?2, status = 'pending', lease_holder_id = NULL, lease_expires_at = NULL,
  idle_attempts = 0, attempts = 0, step_count = -1
WHERE {_OTHER_MANIFEST}
"""

FORGET_STEPS: Final = """
DELETE FROM durable_steps WHERE run_id = ?1
AND EXISTS (SELECT 1 FROM durable_runs WHERE run_id = ?1 AND step_count = -1)
"""

# Of two records of a run the later one has the later timestamp, by at least 1 ms, so that a replay knows their order.
_AFTER_LAST: Final = "max({now}, " + MOMENT.format("{last}, '+0.001 seconds'") + ")"

BEGIN_STEP: Final = f"""
INSERT INTO durable_steps (run_id, step_index, intent, kind, input_hash, status, attempts, started_at)
SELECT ?1, ?4, ?5, ?6, ?7, 'running', 1, {MOMENT.format("?8")} WHERE {HELD}
  AND NOT EXISTS (SELECT 1 FROM durable_runs WHERE run_id = ?1 AND status = 'pending')
ON CONFLICT (run_id, step_index) DO UPDATE SET
  status = 'running', attempts = attempts + 1, kind = excluded.kind, input_hash = excluded.input_hash,
  result_json = NULL, error_json = NULL, started_at = excluded.started_at, completed_at = NULL
WHERE status <> 'completed' AND intent = excluded.intent
  AND (input_hash = excluded.input_hash OR input_hash = '' OR excluded.input_hash = '')
"""

BUMP_STEP_COUNT: Final = f"""
UPDATE durable_runs SET step_count = max(step_count, ?4 + 1),
  updated_at = {_AFTER_LAST.format(now=MOMENT.format("?5"), last="updated_at")},
  idle_attempts = CASE WHEN ?6 THEN 0 ELSE idle_attempts END
WHERE run_id = ?1 AND {HELD}
"""
"""``?6`` is true if the step makes progress, which a failed step does not."""

CAME_FURTHER: Final = f"UPDATE durable_runs SET idle_attempts = 0 WHERE run_id = ?1 AND {HELD}"

COMPLETE_STEP: Final = f"""
UPDATE durable_steps
SET status = 'completed', result_json = ?5, error_json = NULL, completed_at = {MOMENT.format("?6")}
WHERE run_id = ?1 AND step_index = ?4 AND status = 'running' AND {HELD}
"""

FAIL_STEP: Final = f"""
UPDATE durable_steps
SET status = 'failed', error_json = ?5, completed_at = {MOMENT.format("?6")}
WHERE run_id = ?1 AND step_index = ?4 AND status = 'running' AND {HELD}
"""

# Begin and end of a step in one write: most steps are not recorded before they end.
RECORD_STEP: Final = f"""
INSERT INTO durable_steps (run_id, step_index, intent, kind, input_hash, status, attempts, result_json, error_json,
                           started_at, completed_at)
SELECT ?1, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, {MOMENT.format("?12, ?13")},
  {_AFTER_LAST.format(now=MOMENT.format("?12"), last="(SELECT updated_at FROM durable_runs WHERE run_id = ?1)")}
WHERE {HELD}
ON CONFLICT (run_id, step_index) DO UPDATE SET
  status = excluded.status, attempts = excluded.attempts, kind = excluded.kind, input_hash = excluded.input_hash,
  result_json = excluded.result_json, error_json = excluded.error_json,
  started_at = coalesce(started_at, excluded.started_at), completed_at = excluded.completed_at
WHERE status <> 'completed' AND intent = excluded.intent
"""

# A step that the task itself cancelled has failed, even where its result is on record.  A step already recorded as
# failed keeps its timestamp, because later steps are on record by now.
FAIL_FOR_GOOD: Final = RECORD_STEP.replace("WHERE status <> 'completed' AND intent", "WHERE intent").replace(
    "completed_at = excluded.completed_at",
    "completed_at = CASE status WHEN 'failed' THEN completed_at ELSE excluded.completed_at END",
)

SUSPEND_RUN: Final = f"""
UPDATE durable_runs
SET status = 'suspended', updated_at = {MOMENT.format("?4")}, lease_holder_id = NULL, lease_expires_at = NULL,
  idle_attempts = max(0, idle_attempts - 1), attempts = max(0, attempts - 1)
WHERE run_id = ?1 AND {HELD}
"""

RECORD_WAIT: Final = f"""
INSERT OR REPLACE INTO durable_waits (run_id, step_index, event_key, wake_at) SELECT ?1, ?4, ?5, ?6 WHERE {HELD}
"""
"""The schema's triggers make the wait due when its event comes, or has come, and delete it when the run goes on."""

DUE_WAITS: Final = f"""
SELECT run_id FROM durable_waits WHERE wake_at <= {MOMENT.format("?1")} ORDER BY wake_at LIMIT ?2
"""

GIVE_UP_RUN: Final = f"""
UPDATE durable_runs
SET status = 'failed', updated_at = {MOMENT.format("?2")}, completed_at = {MOMENT.format("?2")}, outcome_json = ?3,
    lease_holder_id = NULL, lease_expires_at = NULL
WHERE run_id = ?1 AND status IN ('pending', 'running', 'suspended')
  AND (lease_holder_id IS NULL OR lease_expires_at IS NULL OR lease_expires_at <= {MOMENT.format("?2")})
"""

POLL_EVENT: Final = f"""
SELECT e.payload_json, e.emitted_at,
       CAST(round((julianday({MOMENT.format("?3")}) - julianday(?4)) * 86400000) AS INTEGER) AS waited_ms
FROM (SELECT 1) LEFT JOIN durable_events AS e ON e.run_id = ?1 AND e.key = ?2
"""

END_RUN: Final = f"""
UPDATE durable_runs
SET status = ?4, outcome_json = ?5, completed_at = {MOMENT.format("?6")}, updated_at = {MOMENT.format("?6")},
    lease_holder_id = NULL, lease_expires_at = NULL
WHERE run_id = ?1 AND {HELD} AND (?7 IS NULL OR EXISTS (
  SELECT 1 FROM durable_steps WHERE run_id = ?1 AND step_index = ?7 AND status = ?4))
RETURNING *
"""
"""More columns may follow; they may use its parameters; ``?6`` is the current time."""

RENEW_LEASE: Final = f"""
UPDATE durable_runs SET lease_expires_at = {MOMENT.format("?4, ?5")}
WHERE run_id = ?1 AND {HELD} AND lease_expires_at > {MOMENT.format("?4")}
RETURNING lease_expires_at
"""
"""More columns may follow; they may use its parameters; ``?4`` is the current time."""

EMIT_EVENT: Final = f"""
INSERT OR IGNORE INTO durable_events (run_id, key, payload_json, emitted_at)
SELECT ?1, ?2, ?3, {MOMENT.format("?4")} WHERE EXISTS (SELECT 1 FROM durable_runs WHERE run_id = ?1)
"""

# The remaining term is computed here because only the database's clock can say it.
LOAD_RUN: Final = f"""
SELECT *, max(0, CAST((julianday(lease_expires_at) - julianday({MOMENT.format("?2")})) * 86400000 AS INTEGER))
       AS lease_left_ms
FROM durable_runs WHERE run_id = ?1
"""

LOAD_STEP: Final = "SELECT * FROM durable_steps WHERE run_id = ?1 AND step_index = ?2"

STEPS_PER_PAGE: Final = 500

# One row more than a page, so that a task that ends at the end of a page still finds the recorded step after it.
LOAD_STEPS: Final = f"""
SELECT * FROM durable_steps WHERE run_id = ?1 AND step_index >= ?2 ORDER BY step_index LIMIT {STEPS_PER_PAGE + 1}
"""

LOAD_EVENT: Final = "SELECT * FROM durable_events WHERE run_id = ?1 AND key = ?2"
