-- The ledger adds itself up: triggers keep its sums by day, model and session, whoever changes a row.

ALTER TABLE chat_usage ADD COLUMN estimated_cost_micro_usd INTEGER CHECK (estimated_cost_micro_usd >= 0);
ALTER TABLE chat_turns ADD COLUMN reserved_micro_usd INTEGER NOT NULL DEFAULT 0 CHECK (reserved_micro_usd >= 0);

-- What the ledger adds up to, kept by the triggers behind it with every change of a row, whoever makes it.
CREATE TABLE chat_usage_sums (
  tenant_id TEXT NOT NULL,
  kind TEXT NOT NULL CHECK (kind IN ('day', 'model', 'session')),       -- of all calls of a day, or some of them
  key TEXT NOT NULL,                    -- which model or session; '' for all, and where nobody said the model
  day TEXT NOT NULL CHECK (length(day) = 10),           -- YYYY-MM-DD, UTC, on which the calls were first on record
  turns INTEGER NOT NULL,               -- that have a call of the day; one of two days counts on both
  attempts INTEGER NOT NULL,            -- likewise
  running_calls INTEGER NOT NULL,
  budget_micro_usd INTEGER NOT NULL,    -- for budgets: what calls cost, estimated where nobody knows
  delivered_calls INTEGER NOT NULL,
  delivered_unknown_calls INTEGER NOT NULL,
  delivered_unpriced_calls INTEGER NOT NULL,
  delivered_tokens_in INTEGER NOT NULL,
  delivered_tokens_in_known INTEGER NOT NULL,
  delivered_tokens_out INTEGER NOT NULL,
  delivered_tokens_out_known INTEGER NOT NULL,
  delivered_tokens_cached INTEGER NOT NULL,
  delivered_tokens_cached_known INTEGER NOT NULL,
  delivered_tokens_reasoning INTEGER NOT NULL,
  delivered_tokens_reasoning_known INTEGER NOT NULL,
  delivered_cost_micro_usd INTEGER NOT NULL,
  delivered_cost_micro_usd_known INTEGER NOT NULL,
  delivered_estimated_tokens_out INTEGER NOT NULL,
  delivered_estimated_tokens_out_known INTEGER NOT NULL,
  wasted_calls INTEGER NOT NULL,
  wasted_unknown_calls INTEGER NOT NULL,
  wasted_unpriced_calls INTEGER NOT NULL,
  wasted_tokens_in INTEGER NOT NULL,
  wasted_tokens_in_known INTEGER NOT NULL,
  wasted_tokens_out INTEGER NOT NULL,
  wasted_tokens_out_known INTEGER NOT NULL,
  wasted_tokens_cached INTEGER NOT NULL,
  wasted_tokens_cached_known INTEGER NOT NULL,
  wasted_tokens_reasoning INTEGER NOT NULL,
  wasted_tokens_reasoning_known INTEGER NOT NULL,
  wasted_cost_micro_usd INTEGER NOT NULL,
  wasted_cost_micro_usd_known INTEGER NOT NULL,
  wasted_estimated_tokens_out INTEGER NOT NULL,
  wasted_estimated_tokens_out_known INTEGER NOT NULL,
  PRIMARY KEY (tenant_id, kind, key, day)
) STRICT, WITHOUT ROWID;

-- Turns with calls of several days, by which turns and attempts of a period are put right.
CREATE TABLE chat_usage_spans (
  tenant_id TEXT NOT NULL,
  run_id TEXT NOT NULL,
  PRIMARY KEY (tenant_id, run_id)
) STRICT, WITHOUT ROWID;

INSERT OR REPLACE INTO chat_usage_sums (
    tenant_id, kind, key, day, turns, attempts, running_calls, budget_micro_usd, delivered_calls,
    delivered_unknown_calls, delivered_unpriced_calls, delivered_tokens_in, delivered_tokens_in_known,
    delivered_tokens_out, delivered_tokens_out_known, delivered_tokens_cached, delivered_tokens_cached_known,
    delivered_tokens_reasoning, delivered_tokens_reasoning_known, delivered_cost_micro_usd,
    delivered_cost_micro_usd_known, delivered_estimated_tokens_out, delivered_estimated_tokens_out_known,
    wasted_calls, wasted_unknown_calls, wasted_unpriced_calls, wasted_tokens_in, wasted_tokens_in_known,
    wasted_tokens_out, wasted_tokens_out_known, wasted_tokens_cached, wasted_tokens_cached_known,
    wasted_tokens_reasoning, wasted_tokens_reasoning_known, wasted_cost_micro_usd, wasted_cost_micro_usd_known,
    wasted_estimated_tokens_out, wasted_estimated_tokens_out_known)
SELECT c.tenant_id, 'day', '', substr(c.recorded_at, 1, 10),
  count(DISTINCT c.run_id), count(DISTINCT c.run_id || ' ' || c.attempt),
  sum(c.sign * (c.outcome = 'running')),
  sum(c.sign * coalesce(c.cost_micro_usd, c.estimated_cost_micro_usd, 0)), sum(c.delivered_part),
  sum(c.delivered_part * (c.tokens_in IS NULL OR c.tokens_out IS NULL)),
  sum(c.delivered_part * (c.cost_micro_usd IS NULL)), sum(c.delivered_part * coalesce(c.tokens_in, 0)),
  sum(c.delivered_part * (c.tokens_in IS NOT NULL)), sum(c.delivered_part * coalesce(c.tokens_out, 0)),
  sum(c.delivered_part * (c.tokens_out IS NOT NULL)), sum(c.delivered_part * coalesce(c.tokens_cached, 0)),
  sum(c.delivered_part * (c.tokens_cached IS NOT NULL)),
  sum(c.delivered_part * coalesce(c.tokens_reasoning, 0)),
  sum(c.delivered_part * (c.tokens_reasoning IS NOT NULL)),
  sum(c.delivered_part * coalesce(c.cost_micro_usd, 0)),
  sum(c.delivered_part * (c.cost_micro_usd IS NOT NULL)),
  sum(c.delivered_part * coalesce(c.estimated_tokens_out, 0)),
  sum(c.delivered_part * (c.estimated_tokens_out IS NOT NULL)), sum(c.wasted_part),
  sum(c.wasted_part * (c.tokens_in IS NULL OR c.tokens_out IS NULL)),
  sum(c.wasted_part * (c.cost_micro_usd IS NULL)), sum(c.wasted_part * coalesce(c.tokens_in, 0)),
  sum(c.wasted_part * (c.tokens_in IS NOT NULL)), sum(c.wasted_part * coalesce(c.tokens_out, 0)),
  sum(c.wasted_part * (c.tokens_out IS NOT NULL)), sum(c.wasted_part * coalesce(c.tokens_cached, 0)),
  sum(c.wasted_part * (c.tokens_cached IS NOT NULL)), sum(c.wasted_part * coalesce(c.tokens_reasoning, 0)),
  sum(c.wasted_part * (c.tokens_reasoning IS NOT NULL)), sum(c.wasted_part * coalesce(c.cost_micro_usd, 0)),
  sum(c.wasted_part * (c.cost_micro_usd IS NOT NULL)),
  sum(c.wasted_part * coalesce(c.estimated_tokens_out, 0)),
  sum(c.wasted_part * (c.estimated_tokens_out IS NOT NULL))
FROM (SELECT
      1 AS sign, 1 * (u.wasted = 0) AS delivered_part,
      1 * (u.wasted = 1 AND u.outcome <> 'running') AS wasted_part, u.run_id AS run_id, u.attempt AS attempt,
      u.call_index AS call_index, u.tenant_id AS tenant_id, u.session_id AS session_id,
      u.recorded_at AS recorded_at, u.model AS model, u.outcome AS outcome, u.wasted AS wasted,
      u.tokens_in AS tokens_in, u.tokens_out AS tokens_out, u.tokens_cached AS tokens_cached,
      u.tokens_reasoning AS tokens_reasoning, u.cost_micro_usd AS cost_micro_usd,
      u.estimated_tokens_out AS estimated_tokens_out, u.estimated_cost_micro_usd AS estimated_cost_micro_usd FROM chat_usage AS u WHERE true) AS c GROUP BY 1, 3, 4;
INSERT OR REPLACE INTO chat_usage_sums (
    tenant_id, kind, key, day, turns, attempts, running_calls, budget_micro_usd, delivered_calls,
    delivered_unknown_calls, delivered_unpriced_calls, delivered_tokens_in, delivered_tokens_in_known,
    delivered_tokens_out, delivered_tokens_out_known, delivered_tokens_cached, delivered_tokens_cached_known,
    delivered_tokens_reasoning, delivered_tokens_reasoning_known, delivered_cost_micro_usd,
    delivered_cost_micro_usd_known, delivered_estimated_tokens_out, delivered_estimated_tokens_out_known,
    wasted_calls, wasted_unknown_calls, wasted_unpriced_calls, wasted_tokens_in, wasted_tokens_in_known,
    wasted_tokens_out, wasted_tokens_out_known, wasted_tokens_cached, wasted_tokens_cached_known,
    wasted_tokens_reasoning, wasted_tokens_reasoning_known, wasted_cost_micro_usd, wasted_cost_micro_usd_known,
    wasted_estimated_tokens_out, wasted_estimated_tokens_out_known)
SELECT c.tenant_id, 'model', coalesce(c.model, ''), substr(c.recorded_at, 1, 10),
  count(DISTINCT c.run_id), count(DISTINCT c.run_id || ' ' || c.attempt),
  sum(c.sign * (c.outcome = 'running')),
  sum(c.sign * coalesce(c.cost_micro_usd, c.estimated_cost_micro_usd, 0)), sum(c.delivered_part),
  sum(c.delivered_part * (c.tokens_in IS NULL OR c.tokens_out IS NULL)),
  sum(c.delivered_part * (c.cost_micro_usd IS NULL)), sum(c.delivered_part * coalesce(c.tokens_in, 0)),
  sum(c.delivered_part * (c.tokens_in IS NOT NULL)), sum(c.delivered_part * coalesce(c.tokens_out, 0)),
  sum(c.delivered_part * (c.tokens_out IS NOT NULL)), sum(c.delivered_part * coalesce(c.tokens_cached, 0)),
  sum(c.delivered_part * (c.tokens_cached IS NOT NULL)),
  sum(c.delivered_part * coalesce(c.tokens_reasoning, 0)),
  sum(c.delivered_part * (c.tokens_reasoning IS NOT NULL)),
  sum(c.delivered_part * coalesce(c.cost_micro_usd, 0)),
  sum(c.delivered_part * (c.cost_micro_usd IS NOT NULL)),
  sum(c.delivered_part * coalesce(c.estimated_tokens_out, 0)),
  sum(c.delivered_part * (c.estimated_tokens_out IS NOT NULL)), sum(c.wasted_part),
  sum(c.wasted_part * (c.tokens_in IS NULL OR c.tokens_out IS NULL)),
  sum(c.wasted_part * (c.cost_micro_usd IS NULL)), sum(c.wasted_part * coalesce(c.tokens_in, 0)),
  sum(c.wasted_part * (c.tokens_in IS NOT NULL)), sum(c.wasted_part * coalesce(c.tokens_out, 0)),
  sum(c.wasted_part * (c.tokens_out IS NOT NULL)), sum(c.wasted_part * coalesce(c.tokens_cached, 0)),
  sum(c.wasted_part * (c.tokens_cached IS NOT NULL)), sum(c.wasted_part * coalesce(c.tokens_reasoning, 0)),
  sum(c.wasted_part * (c.tokens_reasoning IS NOT NULL)), sum(c.wasted_part * coalesce(c.cost_micro_usd, 0)),
  sum(c.wasted_part * (c.cost_micro_usd IS NOT NULL)),
  sum(c.wasted_part * coalesce(c.estimated_tokens_out, 0)),
  sum(c.wasted_part * (c.estimated_tokens_out IS NOT NULL))
FROM (SELECT
      1 AS sign, 1 * (u.wasted = 0) AS delivered_part,
      1 * (u.wasted = 1 AND u.outcome <> 'running') AS wasted_part, u.run_id AS run_id, u.attempt AS attempt,
      u.call_index AS call_index, u.tenant_id AS tenant_id, u.session_id AS session_id,
      u.recorded_at AS recorded_at, u.model AS model, u.outcome AS outcome, u.wasted AS wasted,
      u.tokens_in AS tokens_in, u.tokens_out AS tokens_out, u.tokens_cached AS tokens_cached,
      u.tokens_reasoning AS tokens_reasoning, u.cost_micro_usd AS cost_micro_usd,
      u.estimated_tokens_out AS estimated_tokens_out, u.estimated_cost_micro_usd AS estimated_cost_micro_usd FROM chat_usage AS u WHERE true) AS c GROUP BY 1, 3, 4;
INSERT OR REPLACE INTO chat_usage_sums (
    tenant_id, kind, key, day, turns, attempts, running_calls, budget_micro_usd, delivered_calls,
    delivered_unknown_calls, delivered_unpriced_calls, delivered_tokens_in, delivered_tokens_in_known,
    delivered_tokens_out, delivered_tokens_out_known, delivered_tokens_cached, delivered_tokens_cached_known,
    delivered_tokens_reasoning, delivered_tokens_reasoning_known, delivered_cost_micro_usd,
    delivered_cost_micro_usd_known, delivered_estimated_tokens_out, delivered_estimated_tokens_out_known,
    wasted_calls, wasted_unknown_calls, wasted_unpriced_calls, wasted_tokens_in, wasted_tokens_in_known,
    wasted_tokens_out, wasted_tokens_out_known, wasted_tokens_cached, wasted_tokens_cached_known,
    wasted_tokens_reasoning, wasted_tokens_reasoning_known, wasted_cost_micro_usd, wasted_cost_micro_usd_known,
    wasted_estimated_tokens_out, wasted_estimated_tokens_out_known)
SELECT c.tenant_id, 'session', c.session_id, substr(c.recorded_at, 1, 10),
  count(DISTINCT c.run_id), count(DISTINCT c.run_id || ' ' || c.attempt),
  sum(c.sign * (c.outcome = 'running')),
  sum(c.sign * coalesce(c.cost_micro_usd, c.estimated_cost_micro_usd, 0)), sum(c.delivered_part),
  sum(c.delivered_part * (c.tokens_in IS NULL OR c.tokens_out IS NULL)),
  sum(c.delivered_part * (c.cost_micro_usd IS NULL)), sum(c.delivered_part * coalesce(c.tokens_in, 0)),
  sum(c.delivered_part * (c.tokens_in IS NOT NULL)), sum(c.delivered_part * coalesce(c.tokens_out, 0)),
  sum(c.delivered_part * (c.tokens_out IS NOT NULL)), sum(c.delivered_part * coalesce(c.tokens_cached, 0)),
  sum(c.delivered_part * (c.tokens_cached IS NOT NULL)),
  sum(c.delivered_part * coalesce(c.tokens_reasoning, 0)),
  sum(c.delivered_part * (c.tokens_reasoning IS NOT NULL)),
  sum(c.delivered_part * coalesce(c.cost_micro_usd, 0)),
  sum(c.delivered_part * (c.cost_micro_usd IS NOT NULL)),
  sum(c.delivered_part * coalesce(c.estimated_tokens_out, 0)),
  sum(c.delivered_part * (c.estimated_tokens_out IS NOT NULL)), sum(c.wasted_part),
  sum(c.wasted_part * (c.tokens_in IS NULL OR c.tokens_out IS NULL)),
  sum(c.wasted_part * (c.cost_micro_usd IS NULL)), sum(c.wasted_part * coalesce(c.tokens_in, 0)),
  sum(c.wasted_part * (c.tokens_in IS NOT NULL)), sum(c.wasted_part * coalesce(c.tokens_out, 0)),
  sum(c.wasted_part * (c.tokens_out IS NOT NULL)), sum(c.wasted_part * coalesce(c.tokens_cached, 0)),
  sum(c.wasted_part * (c.tokens_cached IS NOT NULL)), sum(c.wasted_part * coalesce(c.tokens_reasoning, 0)),
  sum(c.wasted_part * (c.tokens_reasoning IS NOT NULL)), sum(c.wasted_part * coalesce(c.cost_micro_usd, 0)),
  sum(c.wasted_part * (c.cost_micro_usd IS NOT NULL)),
  sum(c.wasted_part * coalesce(c.estimated_tokens_out, 0)),
  sum(c.wasted_part * (c.estimated_tokens_out IS NOT NULL))
FROM (SELECT
      1 AS sign, 1 * (u.wasted = 0) AS delivered_part,
      1 * (u.wasted = 1 AND u.outcome <> 'running') AS wasted_part, u.run_id AS run_id, u.attempt AS attempt,
      u.call_index AS call_index, u.tenant_id AS tenant_id, u.session_id AS session_id,
      u.recorded_at AS recorded_at, u.model AS model, u.outcome AS outcome, u.wasted AS wasted,
      u.tokens_in AS tokens_in, u.tokens_out AS tokens_out, u.tokens_cached AS tokens_cached,
      u.tokens_reasoning AS tokens_reasoning, u.cost_micro_usd AS cost_micro_usd,
      u.estimated_tokens_out AS estimated_tokens_out, u.estimated_cost_micro_usd AS estimated_cost_micro_usd FROM chat_usage AS u WHERE true) AS c GROUP BY 1, 3, 4;
INSERT OR IGNORE INTO chat_usage_spans (tenant_id, run_id)
SELECT tenant_id, run_id FROM chat_usage WHERE true GROUP BY tenant_id, run_id
HAVING min(substr(recorded_at, 1, 10)) <> max(substr(recorded_at, 1, 10));

CREATE TRIGGER chat_usage_inserted AFTER INSERT ON chat_usage BEGIN
  INSERT INTO chat_usage_sums (
    tenant_id, kind, key, day, turns, attempts, running_calls, budget_micro_usd, delivered_calls,
    delivered_unknown_calls, delivered_unpriced_calls, delivered_tokens_in, delivered_tokens_in_known,
    delivered_tokens_out, delivered_tokens_out_known, delivered_tokens_cached, delivered_tokens_cached_known,
    delivered_tokens_reasoning, delivered_tokens_reasoning_known, delivered_cost_micro_usd,
    delivered_cost_micro_usd_known, delivered_estimated_tokens_out, delivered_estimated_tokens_out_known,
    wasted_calls, wasted_unknown_calls, wasted_unpriced_calls, wasted_tokens_in, wasted_tokens_in_known,
    wasted_tokens_out, wasted_tokens_out_known, wasted_tokens_cached, wasted_tokens_cached_known,
    wasted_tokens_reasoning, wasted_tokens_reasoning_known, wasted_cost_micro_usd, wasted_cost_micro_usd_known,
    wasted_estimated_tokens_out, wasted_estimated_tokens_out_known)
  SELECT c.tenant_id, k.kind,
    iif(k.kind = 'model', coalesce(c.model, ''), iif(k.kind = 'session', c.session_id, '')),
    substr(c.recorded_at, 1, 10),
    sum(c.sign * NOT EXISTS (
      SELECT 1 FROM chat_usage AS o WHERE o.run_id = c.run_id AND (o.attempt <> c.attempt OR o.call_index <> c.call_index)
        AND o.tenant_id = c.tenant_id AND o.session_id = c.session_id
        AND substr(o.recorded_at, 1, 10) = substr(c.recorded_at, 1, 10)
        AND (k.kind <> 'model' OR coalesce(o.model, '') = coalesce(c.model, '')))),
    sum(c.sign * NOT EXISTS (
      SELECT 1 FROM chat_usage AS o WHERE o.run_id = c.run_id AND o.attempt = c.attempt AND o.call_index <> c.call_index
        AND o.tenant_id = c.tenant_id AND o.session_id = c.session_id
        AND substr(o.recorded_at, 1, 10) = substr(c.recorded_at, 1, 10)
        AND (k.kind <> 'model' OR coalesce(o.model, '') = coalesce(c.model, '')))),
    sum(c.sign * (c.outcome = 'running')),
    sum(c.sign * coalesce(c.cost_micro_usd, c.estimated_cost_micro_usd, 0)),
    sum(c.delivered_part),
    sum(c.delivered_part * (c.tokens_in IS NULL OR c.tokens_out IS NULL)),
    sum(c.delivered_part * (c.cost_micro_usd IS NULL)),
    sum(c.delivered_part * coalesce(c.tokens_in, 0)),
    sum(c.delivered_part * (c.tokens_in IS NOT NULL)),
    sum(c.delivered_part * coalesce(c.tokens_out, 0)),
    sum(c.delivered_part * (c.tokens_out IS NOT NULL)),
    sum(c.delivered_part * coalesce(c.tokens_cached, 0)),
    sum(c.delivered_part * (c.tokens_cached IS NOT NULL)),
    sum(c.delivered_part * coalesce(c.tokens_reasoning, 0)),
    sum(c.delivered_part * (c.tokens_reasoning IS NOT NULL)),
    sum(c.delivered_part * coalesce(c.cost_micro_usd, 0)),
    sum(c.delivered_part * (c.cost_micro_usd IS NOT NULL)),
    sum(c.delivered_part * coalesce(c.estimated_tokens_out, 0)),
    sum(c.delivered_part * (c.estimated_tokens_out IS NOT NULL)),
    sum(c.wasted_part),
    sum(c.wasted_part * (c.tokens_in IS NULL OR c.tokens_out IS NULL)),
    sum(c.wasted_part * (c.cost_micro_usd IS NULL)),
    sum(c.wasted_part * coalesce(c.tokens_in, 0)),
    sum(c.wasted_part * (c.tokens_in IS NOT NULL)),
    sum(c.wasted_part * coalesce(c.tokens_out, 0)),
    sum(c.wasted_part * (c.tokens_out IS NOT NULL)),
    sum(c.wasted_part * coalesce(c.tokens_cached, 0)),
    sum(c.wasted_part * (c.tokens_cached IS NOT NULL)),
    sum(c.wasted_part * coalesce(c.tokens_reasoning, 0)),
    sum(c.wasted_part * (c.tokens_reasoning IS NOT NULL)),
    sum(c.wasted_part * coalesce(c.cost_micro_usd, 0)),
    sum(c.wasted_part * (c.cost_micro_usd IS NOT NULL)),
    sum(c.wasted_part * coalesce(c.estimated_tokens_out, 0)),
    sum(c.wasted_part * (c.estimated_tokens_out IS NOT NULL))
  FROM (
    SELECT
      1 AS sign, 1 * (NEW.wasted = 0) AS delivered_part,
      1 * (NEW.wasted = 1 AND NEW.outcome <> 'running') AS wasted_part, NEW.run_id AS run_id,
      NEW.attempt AS attempt, NEW.call_index AS call_index, NEW.tenant_id AS tenant_id,
      NEW.session_id AS session_id, NEW.recorded_at AS recorded_at, NEW.model AS model, NEW.outcome AS outcome,
      NEW.wasted AS wasted, NEW.tokens_in AS tokens_in, NEW.tokens_out AS tokens_out,
      NEW.tokens_cached AS tokens_cached, NEW.tokens_reasoning AS tokens_reasoning,
      NEW.cost_micro_usd AS cost_micro_usd, NEW.estimated_tokens_out AS estimated_tokens_out,
      NEW.estimated_cost_micro_usd AS estimated_cost_micro_usd) AS c
  CROSS JOIN (SELECT 'day' AS kind UNION ALL SELECT 'model' UNION ALL SELECT 'session') AS k
  WHERE true GROUP BY 1, 2, 3, 4
  ON CONFLICT (tenant_id, kind, key, day) DO UPDATE SET
    turns = turns + excluded.turns, attempts = attempts + excluded.attempts,
    running_calls = running_calls + excluded.running_calls,
    budget_micro_usd = budget_micro_usd + excluded.budget_micro_usd,
    delivered_calls = delivered_calls + excluded.delivered_calls,
    delivered_unknown_calls = delivered_unknown_calls + excluded.delivered_unknown_calls,
    delivered_unpriced_calls = delivered_unpriced_calls + excluded.delivered_unpriced_calls,
    delivered_tokens_in = delivered_tokens_in + excluded.delivered_tokens_in,
    delivered_tokens_in_known = delivered_tokens_in_known + excluded.delivered_tokens_in_known,
    delivered_tokens_out = delivered_tokens_out + excluded.delivered_tokens_out,
    delivered_tokens_out_known = delivered_tokens_out_known + excluded.delivered_tokens_out_known,
    delivered_tokens_cached = delivered_tokens_cached + excluded.delivered_tokens_cached,
    delivered_tokens_cached_known = delivered_tokens_cached_known + excluded.delivered_tokens_cached_known,
    delivered_tokens_reasoning = delivered_tokens_reasoning + excluded.delivered_tokens_reasoning,
    delivered_tokens_reasoning_known = delivered_tokens_reasoning_known + excluded.delivered_tokens_reasoning_known,
    delivered_cost_micro_usd = delivered_cost_micro_usd + excluded.delivered_cost_micro_usd,
    delivered_cost_micro_usd_known = delivered_cost_micro_usd_known + excluded.delivered_cost_micro_usd_known,
    delivered_estimated_tokens_out = delivered_estimated_tokens_out + excluded.delivered_estimated_tokens_out,
    delivered_estimated_tokens_out_known = delivered_estimated_tokens_out_known + excluded.delivered_estimated_tokens_out_known,
    wasted_calls = wasted_calls + excluded.wasted_calls,
    wasted_unknown_calls = wasted_unknown_calls + excluded.wasted_unknown_calls,
    wasted_unpriced_calls = wasted_unpriced_calls + excluded.wasted_unpriced_calls,
    wasted_tokens_in = wasted_tokens_in + excluded.wasted_tokens_in,
    wasted_tokens_in_known = wasted_tokens_in_known + excluded.wasted_tokens_in_known,
    wasted_tokens_out = wasted_tokens_out + excluded.wasted_tokens_out,
    wasted_tokens_out_known = wasted_tokens_out_known + excluded.wasted_tokens_out_known,
    wasted_tokens_cached = wasted_tokens_cached + excluded.wasted_tokens_cached,
    wasted_tokens_cached_known = wasted_tokens_cached_known + excluded.wasted_tokens_cached_known,
    wasted_tokens_reasoning = wasted_tokens_reasoning + excluded.wasted_tokens_reasoning,
    wasted_tokens_reasoning_known = wasted_tokens_reasoning_known + excluded.wasted_tokens_reasoning_known,
    wasted_cost_micro_usd = wasted_cost_micro_usd + excluded.wasted_cost_micro_usd,
    wasted_cost_micro_usd_known = wasted_cost_micro_usd_known + excluded.wasted_cost_micro_usd_known,
    wasted_estimated_tokens_out = wasted_estimated_tokens_out + excluded.wasted_estimated_tokens_out,
    wasted_estimated_tokens_out_known = wasted_estimated_tokens_out_known + excluded.wasted_estimated_tokens_out_known;
  INSERT INTO chat_usage_spans (tenant_id, run_id) SELECT NEW.tenant_id, NEW.run_id WHERE EXISTS (
    SELECT 1 FROM chat_usage
    WHERE run_id = NEW.run_id AND substr(recorded_at, 1, 10) <> substr(NEW.recorded_at, 1, 10))
  ON CONFLICT (tenant_id, run_id) DO NOTHING;
END;
CREATE TRIGGER chat_usage_updated AFTER UPDATE ON chat_usage BEGIN
  INSERT INTO chat_usage_sums (
    tenant_id, kind, key, day, turns, attempts, running_calls, budget_micro_usd, delivered_calls,
    delivered_unknown_calls, delivered_unpriced_calls, delivered_tokens_in, delivered_tokens_in_known,
    delivered_tokens_out, delivered_tokens_out_known, delivered_tokens_cached, delivered_tokens_cached_known,
    delivered_tokens_reasoning, delivered_tokens_reasoning_known, delivered_cost_micro_usd,
    delivered_cost_micro_usd_known, delivered_estimated_tokens_out, delivered_estimated_tokens_out_known,
    wasted_calls, wasted_unknown_calls, wasted_unpriced_calls, wasted_tokens_in, wasted_tokens_in_known,
    wasted_tokens_out, wasted_tokens_out_known, wasted_tokens_cached, wasted_tokens_cached_known,
    wasted_tokens_reasoning, wasted_tokens_reasoning_known, wasted_cost_micro_usd, wasted_cost_micro_usd_known,
    wasted_estimated_tokens_out, wasted_estimated_tokens_out_known)
  SELECT c.tenant_id, k.kind,
    iif(k.kind = 'model', coalesce(c.model, ''), iif(k.kind = 'session', c.session_id, '')),
    substr(c.recorded_at, 1, 10),
    sum(c.sign * NOT EXISTS (
      SELECT 1 FROM chat_usage AS o WHERE o.run_id = c.run_id AND (o.attempt <> c.attempt OR o.call_index <> c.call_index)
        AND o.tenant_id = c.tenant_id AND o.session_id = c.session_id
        AND substr(o.recorded_at, 1, 10) = substr(c.recorded_at, 1, 10)
        AND (k.kind <> 'model' OR coalesce(o.model, '') = coalesce(c.model, '')))),
    sum(c.sign * NOT EXISTS (
      SELECT 1 FROM chat_usage AS o WHERE o.run_id = c.run_id AND o.attempt = c.attempt AND o.call_index <> c.call_index
        AND o.tenant_id = c.tenant_id AND o.session_id = c.session_id
        AND substr(o.recorded_at, 1, 10) = substr(c.recorded_at, 1, 10)
        AND (k.kind <> 'model' OR coalesce(o.model, '') = coalesce(c.model, '')))),
    sum(c.sign * (c.outcome = 'running')),
    sum(c.sign * coalesce(c.cost_micro_usd, c.estimated_cost_micro_usd, 0)),
    sum(c.delivered_part),
    sum(c.delivered_part * (c.tokens_in IS NULL OR c.tokens_out IS NULL)),
    sum(c.delivered_part * (c.cost_micro_usd IS NULL)),
    sum(c.delivered_part * coalesce(c.tokens_in, 0)),
    sum(c.delivered_part * (c.tokens_in IS NOT NULL)),
    sum(c.delivered_part * coalesce(c.tokens_out, 0)),
    sum(c.delivered_part * (c.tokens_out IS NOT NULL)),
    sum(c.delivered_part * coalesce(c.tokens_cached, 0)),
    sum(c.delivered_part * (c.tokens_cached IS NOT NULL)),
    sum(c.delivered_part * coalesce(c.tokens_reasoning, 0)),
    sum(c.delivered_part * (c.tokens_reasoning IS NOT NULL)),
    sum(c.delivered_part * coalesce(c.cost_micro_usd, 0)),
    sum(c.delivered_part * (c.cost_micro_usd IS NOT NULL)),
    sum(c.delivered_part * coalesce(c.estimated_tokens_out, 0)),
    sum(c.delivered_part * (c.estimated_tokens_out IS NOT NULL)),
    sum(c.wasted_part),
    sum(c.wasted_part * (c.tokens_in IS NULL OR c.tokens_out IS NULL)),
    sum(c.wasted_part * (c.cost_micro_usd IS NULL)),
    sum(c.wasted_part * coalesce(c.tokens_in, 0)),
    sum(c.wasted_part * (c.tokens_in IS NOT NULL)),
    sum(c.wasted_part * coalesce(c.tokens_out, 0)),
    sum(c.wasted_part * (c.tokens_out IS NOT NULL)),
    sum(c.wasted_part * coalesce(c.tokens_cached, 0)),
    sum(c.wasted_part * (c.tokens_cached IS NOT NULL)),
    sum(c.wasted_part * coalesce(c.tokens_reasoning, 0)),
    sum(c.wasted_part * (c.tokens_reasoning IS NOT NULL)),
    sum(c.wasted_part * coalesce(c.cost_micro_usd, 0)),
    sum(c.wasted_part * (c.cost_micro_usd IS NOT NULL)),
    sum(c.wasted_part * coalesce(c.estimated_tokens_out, 0)),
    sum(c.wasted_part * (c.estimated_tokens_out IS NOT NULL))
  FROM (
    SELECT
      -1 AS sign, -1 * (OLD.wasted = 0) AS delivered_part,
      -1 * (OLD.wasted = 1 AND OLD.outcome <> 'running') AS wasted_part, OLD.run_id AS run_id,
      OLD.attempt AS attempt, OLD.call_index AS call_index, OLD.tenant_id AS tenant_id,
      OLD.session_id AS session_id, OLD.recorded_at AS recorded_at, OLD.model AS model, OLD.outcome AS outcome,
      OLD.wasted AS wasted, OLD.tokens_in AS tokens_in, OLD.tokens_out AS tokens_out,
      OLD.tokens_cached AS tokens_cached, OLD.tokens_reasoning AS tokens_reasoning,
      OLD.cost_micro_usd AS cost_micro_usd, OLD.estimated_tokens_out AS estimated_tokens_out,
      OLD.estimated_cost_micro_usd AS estimated_cost_micro_usd
    UNION ALL SELECT
      1 AS sign, 1 * (NEW.wasted = 0) AS delivered_part,
      1 * (NEW.wasted = 1 AND NEW.outcome <> 'running') AS wasted_part, NEW.run_id AS run_id,
      NEW.attempt AS attempt, NEW.call_index AS call_index, NEW.tenant_id AS tenant_id,
      NEW.session_id AS session_id, NEW.recorded_at AS recorded_at, NEW.model AS model, NEW.outcome AS outcome,
      NEW.wasted AS wasted, NEW.tokens_in AS tokens_in, NEW.tokens_out AS tokens_out,
      NEW.tokens_cached AS tokens_cached, NEW.tokens_reasoning AS tokens_reasoning,
      NEW.cost_micro_usd AS cost_micro_usd, NEW.estimated_tokens_out AS estimated_tokens_out,
      NEW.estimated_cost_micro_usd AS estimated_cost_micro_usd) AS c
  CROSS JOIN (SELECT 'day' AS kind UNION ALL SELECT 'model' UNION ALL SELECT 'session') AS k
  WHERE true GROUP BY 1, 2, 3, 4
  ON CONFLICT (tenant_id, kind, key, day) DO UPDATE SET
    turns = turns + excluded.turns, attempts = attempts + excluded.attempts,
    running_calls = running_calls + excluded.running_calls,
    budget_micro_usd = budget_micro_usd + excluded.budget_micro_usd,
    delivered_calls = delivered_calls + excluded.delivered_calls,
    delivered_unknown_calls = delivered_unknown_calls + excluded.delivered_unknown_calls,
    delivered_unpriced_calls = delivered_unpriced_calls + excluded.delivered_unpriced_calls,
    delivered_tokens_in = delivered_tokens_in + excluded.delivered_tokens_in,
    delivered_tokens_in_known = delivered_tokens_in_known + excluded.delivered_tokens_in_known,
    delivered_tokens_out = delivered_tokens_out + excluded.delivered_tokens_out,
    delivered_tokens_out_known = delivered_tokens_out_known + excluded.delivered_tokens_out_known,
    delivered_tokens_cached = delivered_tokens_cached + excluded.delivered_tokens_cached,
    delivered_tokens_cached_known = delivered_tokens_cached_known + excluded.delivered_tokens_cached_known,
    delivered_tokens_reasoning = delivered_tokens_reasoning + excluded.delivered_tokens_reasoning,
    delivered_tokens_reasoning_known = delivered_tokens_reasoning_known + excluded.delivered_tokens_reasoning_known,
    delivered_cost_micro_usd = delivered_cost_micro_usd + excluded.delivered_cost_micro_usd,
    delivered_cost_micro_usd_known = delivered_cost_micro_usd_known + excluded.delivered_cost_micro_usd_known,
    delivered_estimated_tokens_out = delivered_estimated_tokens_out + excluded.delivered_estimated_tokens_out,
    delivered_estimated_tokens_out_known = delivered_estimated_tokens_out_known + excluded.delivered_estimated_tokens_out_known,
    wasted_calls = wasted_calls + excluded.wasted_calls,
    wasted_unknown_calls = wasted_unknown_calls + excluded.wasted_unknown_calls,
    wasted_unpriced_calls = wasted_unpriced_calls + excluded.wasted_unpriced_calls,
    wasted_tokens_in = wasted_tokens_in + excluded.wasted_tokens_in,
    wasted_tokens_in_known = wasted_tokens_in_known + excluded.wasted_tokens_in_known,
    wasted_tokens_out = wasted_tokens_out + excluded.wasted_tokens_out,
    wasted_tokens_out_known = wasted_tokens_out_known + excluded.wasted_tokens_out_known,
    wasted_tokens_cached = wasted_tokens_cached + excluded.wasted_tokens_cached,
    wasted_tokens_cached_known = wasted_tokens_cached_known + excluded.wasted_tokens_cached_known,
    wasted_tokens_reasoning = wasted_tokens_reasoning + excluded.wasted_tokens_reasoning,
    wasted_tokens_reasoning_known = wasted_tokens_reasoning_known + excluded.wasted_tokens_reasoning_known,
    wasted_cost_micro_usd = wasted_cost_micro_usd + excluded.wasted_cost_micro_usd,
    wasted_cost_micro_usd_known = wasted_cost_micro_usd_known + excluded.wasted_cost_micro_usd_known,
    wasted_estimated_tokens_out = wasted_estimated_tokens_out + excluded.wasted_estimated_tokens_out,
    wasted_estimated_tokens_out_known = wasted_estimated_tokens_out_known + excluded.wasted_estimated_tokens_out_known;
  UPDATE OR REPLACE chat_usage_spans SET tenant_id = NEW.tenant_id, run_id = NEW.run_id
  WHERE (NEW.tenant_id <> OLD.tenant_id OR NEW.run_id <> OLD.run_id)
    AND tenant_id = OLD.tenant_id AND run_id = OLD.run_id;
  DELETE FROM chat_usage_sums WHERE tenant_id = OLD.tenant_id AND kind IN ('day', 'model', 'session')
    AND key IN ('', coalesce(OLD.model, ''), OLD.session_id) AND day = substr(OLD.recorded_at, 1, 10)
    AND turns = 0 AND (NEW.model IS NOT OLD.model OR NEW.tenant_id <> OLD.tenant_id);
END;
CREATE TRIGGER chat_usage_deleted AFTER DELETE ON chat_usage BEGIN
  INSERT INTO chat_usage_sums (
    tenant_id, kind, key, day, turns, attempts, running_calls, budget_micro_usd, delivered_calls,
    delivered_unknown_calls, delivered_unpriced_calls, delivered_tokens_in, delivered_tokens_in_known,
    delivered_tokens_out, delivered_tokens_out_known, delivered_tokens_cached, delivered_tokens_cached_known,
    delivered_tokens_reasoning, delivered_tokens_reasoning_known, delivered_cost_micro_usd,
    delivered_cost_micro_usd_known, delivered_estimated_tokens_out, delivered_estimated_tokens_out_known,
    wasted_calls, wasted_unknown_calls, wasted_unpriced_calls, wasted_tokens_in, wasted_tokens_in_known,
    wasted_tokens_out, wasted_tokens_out_known, wasted_tokens_cached, wasted_tokens_cached_known,
    wasted_tokens_reasoning, wasted_tokens_reasoning_known, wasted_cost_micro_usd, wasted_cost_micro_usd_known,
    wasted_estimated_tokens_out, wasted_estimated_tokens_out_known)
  SELECT c.tenant_id, k.kind,
    iif(k.kind = 'model', coalesce(c.model, ''), iif(k.kind = 'session', c.session_id, '')),
    substr(c.recorded_at, 1, 10),
    sum(c.sign * NOT EXISTS (
      SELECT 1 FROM chat_usage AS o WHERE o.run_id = c.run_id AND (o.attempt <> c.attempt OR o.call_index <> c.call_index)
        AND o.tenant_id = c.tenant_id AND o.session_id = c.session_id
        AND substr(o.recorded_at, 1, 10) = substr(c.recorded_at, 1, 10)
        AND (k.kind <> 'model' OR coalesce(o.model, '') = coalesce(c.model, '')))),
    sum(c.sign * NOT EXISTS (
      SELECT 1 FROM chat_usage AS o WHERE o.run_id = c.run_id AND o.attempt = c.attempt AND o.call_index <> c.call_index
        AND o.tenant_id = c.tenant_id AND o.session_id = c.session_id
        AND substr(o.recorded_at, 1, 10) = substr(c.recorded_at, 1, 10)
        AND (k.kind <> 'model' OR coalesce(o.model, '') = coalesce(c.model, '')))),
    sum(c.sign * (c.outcome = 'running')),
    sum(c.sign * coalesce(c.cost_micro_usd, c.estimated_cost_micro_usd, 0)),
    sum(c.delivered_part),
    sum(c.delivered_part * (c.tokens_in IS NULL OR c.tokens_out IS NULL)),
    sum(c.delivered_part * (c.cost_micro_usd IS NULL)),
    sum(c.delivered_part * coalesce(c.tokens_in, 0)),
    sum(c.delivered_part * (c.tokens_in IS NOT NULL)),
    sum(c.delivered_part * coalesce(c.tokens_out, 0)),
    sum(c.delivered_part * (c.tokens_out IS NOT NULL)),
    sum(c.delivered_part * coalesce(c.tokens_cached, 0)),
    sum(c.delivered_part * (c.tokens_cached IS NOT NULL)),
    sum(c.delivered_part * coalesce(c.tokens_reasoning, 0)),
    sum(c.delivered_part * (c.tokens_reasoning IS NOT NULL)),
    sum(c.delivered_part * coalesce(c.cost_micro_usd, 0)),
    sum(c.delivered_part * (c.cost_micro_usd IS NOT NULL)),
    sum(c.delivered_part * coalesce(c.estimated_tokens_out, 0)),
    sum(c.delivered_part * (c.estimated_tokens_out IS NOT NULL)),
    sum(c.wasted_part),
    sum(c.wasted_part * (c.tokens_in IS NULL OR c.tokens_out IS NULL)),
    sum(c.wasted_part * (c.cost_micro_usd IS NULL)),
    sum(c.wasted_part * coalesce(c.tokens_in, 0)),
    sum(c.wasted_part * (c.tokens_in IS NOT NULL)),
    sum(c.wasted_part * coalesce(c.tokens_out, 0)),
    sum(c.wasted_part * (c.tokens_out IS NOT NULL)),
    sum(c.wasted_part * coalesce(c.tokens_cached, 0)),
    sum(c.wasted_part * (c.tokens_cached IS NOT NULL)),
    sum(c.wasted_part * coalesce(c.tokens_reasoning, 0)),
    sum(c.wasted_part * (c.tokens_reasoning IS NOT NULL)),
    sum(c.wasted_part * coalesce(c.cost_micro_usd, 0)),
    sum(c.wasted_part * (c.cost_micro_usd IS NOT NULL)),
    sum(c.wasted_part * coalesce(c.estimated_tokens_out, 0)),
    sum(c.wasted_part * (c.estimated_tokens_out IS NOT NULL))
  FROM (
    SELECT
      -1 AS sign, -1 * (OLD.wasted = 0) AS delivered_part,
      -1 * (OLD.wasted = 1 AND OLD.outcome <> 'running') AS wasted_part, OLD.run_id AS run_id,
      OLD.attempt AS attempt, OLD.call_index AS call_index, OLD.tenant_id AS tenant_id,
      OLD.session_id AS session_id, OLD.recorded_at AS recorded_at, OLD.model AS model, OLD.outcome AS outcome,
      OLD.wasted AS wasted, OLD.tokens_in AS tokens_in, OLD.tokens_out AS tokens_out,
      OLD.tokens_cached AS tokens_cached, OLD.tokens_reasoning AS tokens_reasoning,
      OLD.cost_micro_usd AS cost_micro_usd, OLD.estimated_tokens_out AS estimated_tokens_out,
      OLD.estimated_cost_micro_usd AS estimated_cost_micro_usd) AS c
  CROSS JOIN (SELECT 'day' AS kind UNION ALL SELECT 'model' UNION ALL SELECT 'session') AS k
  WHERE true GROUP BY 1, 2, 3, 4
  ON CONFLICT (tenant_id, kind, key, day) DO UPDATE SET
    turns = turns + excluded.turns, attempts = attempts + excluded.attempts,
    running_calls = running_calls + excluded.running_calls,
    budget_micro_usd = budget_micro_usd + excluded.budget_micro_usd,
    delivered_calls = delivered_calls + excluded.delivered_calls,
    delivered_unknown_calls = delivered_unknown_calls + excluded.delivered_unknown_calls,
    delivered_unpriced_calls = delivered_unpriced_calls + excluded.delivered_unpriced_calls,
    delivered_tokens_in = delivered_tokens_in + excluded.delivered_tokens_in,
    delivered_tokens_in_known = delivered_tokens_in_known + excluded.delivered_tokens_in_known,
    delivered_tokens_out = delivered_tokens_out + excluded.delivered_tokens_out,
    delivered_tokens_out_known = delivered_tokens_out_known + excluded.delivered_tokens_out_known,
    delivered_tokens_cached = delivered_tokens_cached + excluded.delivered_tokens_cached,
    delivered_tokens_cached_known = delivered_tokens_cached_known + excluded.delivered_tokens_cached_known,
    delivered_tokens_reasoning = delivered_tokens_reasoning + excluded.delivered_tokens_reasoning,
    delivered_tokens_reasoning_known = delivered_tokens_reasoning_known + excluded.delivered_tokens_reasoning_known,
    delivered_cost_micro_usd = delivered_cost_micro_usd + excluded.delivered_cost_micro_usd,
    delivered_cost_micro_usd_known = delivered_cost_micro_usd_known + excluded.delivered_cost_micro_usd_known,
    delivered_estimated_tokens_out = delivered_estimated_tokens_out + excluded.delivered_estimated_tokens_out,
    delivered_estimated_tokens_out_known = delivered_estimated_tokens_out_known + excluded.delivered_estimated_tokens_out_known,
    wasted_calls = wasted_calls + excluded.wasted_calls,
    wasted_unknown_calls = wasted_unknown_calls + excluded.wasted_unknown_calls,
    wasted_unpriced_calls = wasted_unpriced_calls + excluded.wasted_unpriced_calls,
    wasted_tokens_in = wasted_tokens_in + excluded.wasted_tokens_in,
    wasted_tokens_in_known = wasted_tokens_in_known + excluded.wasted_tokens_in_known,
    wasted_tokens_out = wasted_tokens_out + excluded.wasted_tokens_out,
    wasted_tokens_out_known = wasted_tokens_out_known + excluded.wasted_tokens_out_known,
    wasted_tokens_cached = wasted_tokens_cached + excluded.wasted_tokens_cached,
    wasted_tokens_cached_known = wasted_tokens_cached_known + excluded.wasted_tokens_cached_known,
    wasted_tokens_reasoning = wasted_tokens_reasoning + excluded.wasted_tokens_reasoning,
    wasted_tokens_reasoning_known = wasted_tokens_reasoning_known + excluded.wasted_tokens_reasoning_known,
    wasted_cost_micro_usd = wasted_cost_micro_usd + excluded.wasted_cost_micro_usd,
    wasted_cost_micro_usd_known = wasted_cost_micro_usd_known + excluded.wasted_cost_micro_usd_known,
    wasted_estimated_tokens_out = wasted_estimated_tokens_out + excluded.wasted_estimated_tokens_out,
    wasted_estimated_tokens_out_known = wasted_estimated_tokens_out_known + excluded.wasted_estimated_tokens_out_known;
  DELETE FROM chat_usage_spans WHERE tenant_id = OLD.tenant_id AND run_id = OLD.run_id
    AND NOT EXISTS (SELECT 1 FROM chat_usage WHERE run_id = OLD.run_id);
  DELETE FROM chat_usage_sums WHERE tenant_id = OLD.tenant_id AND kind IN ('day', 'model', 'session')
    AND key IN ('', coalesce(OLD.model, ''), OLD.session_id) AND day = substr(OLD.recorded_at, 1, 10)
    AND turns = 0;
END;

-- What each tenant, and each of its users, has begun and stored on a day.
CREATE TABLE chat_allowances (
  tenant_id TEXT NOT NULL,
  user_id TEXT NOT NULL,                -- '' for all of the tenant's together
  day TEXT NOT NULL CHECK (length(day) = 10),           -- YYYY-MM-DD, UTC
  turns INTEGER NOT NULL DEFAULT 0,     -- begun
  bytes INTEGER NOT NULL DEFAULT 0,     -- of requests, answers' logs and events
  PRIMARY KEY (tenant_id, user_id, day)
) STRICT, WITHOUT ROWID;

INSERT OR IGNORE INTO durable_schema_info (version, applied_at)
VALUES (114, strftime('%Y-%m-%dT%H:%M:%fZ', 'now'));
