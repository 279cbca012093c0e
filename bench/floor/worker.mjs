// *floor*: the least that an engine shaped like agent-runtime's can cost in JavaScript.
//
// It reads the model's stream chunk by chunk, parses SSE and JSON, and writes one NDJSON line per event,
// each write awaited. Two D1 batches per fresh turn (claim, finish), one per replay, on the tables of
// ../../schema.sql. What an engine also has to do is left out, always in its favour: no token is checked,
// no input validated or hashed, no lease fenced or renewed, no log, no retry, no deadline, no trace.

const PATH = /^\/v1\/sessions\/([^/]+)\/turns\/(\d+)$/;
const LEASE_MS = 60_000;

export default {
  async fetch(request, env, ctx) {
    if (request.method === "GET") return new Response("ok");
    const [, sessionId, turnIndex] = PATH.exec(new URL(request.url).pathname);
    const turn = { sessionId, turnIndex: Number(turnIndex), ...(await request.json()) };
    const { readable, writable } = new IdentityTransformStream();
    ctx.waitUntil(runTurn(env, turn, writable.getWriter()));
    return new Response(readable, { headers: { "content-type": "application/x-ndjson" } });
  },
};

async function runTurn(env, turn, writer) {
  const { sessionId, turnIndex } = turn;
  const send = lineWriter(writer);
  await send("session.run.started", { sessionId, tenantId: "bench", turnIndex });
  try {
    const claimed = await claim(env.DB, turn);
    if (claimed.result_json) {
      await send("result", { finalText: JSON.parse(claimed.result_json).finalText });
    } else {
      await finish(env.DB, turn, await answer(env, turn, send));
    }
    const replayed = Boolean(claimed.result_json);
    await send("session.run.completed", { sessionId, replayed });
  } catch (error) {
    await send("error", { message: error.message });
    await send("session.run.failed", { sessionId, message: error.message });
  }
  await writer.close();
}

function lineWriter(writer) {
  const encoder = new TextEncoder();
  return (type, data) => writer.write(encoder.encode(JSON.stringify({ type, data }) + "\n"));
}

/** Asks the model; returns the whole text after every event was written. */
async function answer(env, { message, model }, send) {
  const response = await fetch(`${env.OPENAI_BASE_URL}/chat/completions`, {
    method: "POST",
    headers: { "content-type": "application/json", authorization: "Bearer bench" },
    body: JSON.stringify({ model, stream: true, messages: [{ role: "user", content: message }] }),
  });
  const decoder = new TextDecoder();
  const reader = response.body.getReader();
  let text = "";
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return text;
    rest += decoder.decode(value, { stream: true });
    const frames = rest.split("\n\n");
    rest = frames.pop();
    for (const frame of frames) {
      if (!frame.startsWith("data: ")) continue;
      const payload = frame.slice(6);
      if (payload === "[DONE]") return text;
      const event = JSON.parse(payload);
      const delta = event.choices?.[0]?.delta?.content;
      if (delta) {
        text += delta;
        await send("message.part.updated", { delta, part: { id: "text", type: "text" } });
      }
      if (event.usage) {
        const { prompt_tokens: tokensIn, completion_tokens: tokensOut } = event.usage;
        await send("usage", { model: event.model, tokensIn, tokensOut });
      }
    }
  }
}

const runId = ({ sessionId, turnIndex }) => `chat:${sessionId}:${turnIndex}`;

/** One round trip: upsert the run, begin the step, read it. */
async function claim(db, turn) {
  const id = runId(turn);
  const now = new Date();
  const until = new Date(now.getTime() + LEASE_MS).toISOString();
  const at = now.toISOString();
  const [, , { results }] = await db.batch([
    db
      .prepare(
        `INSERT INTO durable_runs (run_id, manifest_hash, project_id, status, created_at, updated_at,
                                   lease_holder_id, lease_expires_at, step_count)
         VALUES (?1, '', 'bench', 'running', ?2, ?2, 'bench', ?3, 1)
         ON CONFLICT (run_id) DO UPDATE SET updated_at = ?2, lease_holder_id = 'bench', lease_expires_at = ?3
         WHERE status <> 'completed'`,
      )
      .bind(id, at, until),
    db
      .prepare(
        `INSERT INTO durable_steps (run_id, step_index, intent, kind, status, attempts, started_at)
         VALUES (?1, 0, ?2, 'llm', 'running', 1, ?3)
         ON CONFLICT (run_id, step_index) DO UPDATE SET attempts = attempts + 1 WHERE status <> 'completed'`,
      )
      .bind(id, `chat:turn-${turn.turnIndex}`, at),
    db.prepare("SELECT status, result_json FROM durable_steps WHERE run_id = ?1 AND step_index = 0").bind(id),
  ]);
  return results[0];
}

/** One round trip: complete the step, end the run, store the answer. */
async function finish(db, turn, finalText) {
  const id = runId(turn);
  const at = new Date().toISOString();
  await db.batch([
    db
      .prepare(
        `UPDATE durable_steps SET status = 'completed', result_json = ?2, completed_at = ?3
         WHERE run_id = ?1 AND step_index = 0`,
      )
      .bind(id, JSON.stringify({ finalText }), at),
    db
      .prepare(
        `UPDATE durable_runs SET status = 'completed', completed_at = ?2, updated_at = ?2,
                                 lease_holder_id = NULL, lease_expires_at = NULL
         WHERE run_id = ?1`,
      )
      .bind(id, at),
    db
      .prepare(
        `INSERT INTO chat_messages (tenant_id, session_id, turn_index, role, content, run_id, created_at)
         VALUES ('bench', ?1, ?2, 'assistant', ?3, ?4, ?5)
         ON CONFLICT DO UPDATE SET content = excluded.content`,
      )
      .bind(turn.sessionId, turn.turnIndex, finalText, id, at),
  ]);
}
