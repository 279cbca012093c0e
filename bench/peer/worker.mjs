// *peer*: an engine of agent-runtime's shape, in JavaScript: what a turn costs that is made as its documents make it.
//
// Eleven statements a fresh turn, five a replay, each awaited by itself, on the tables of ../../schema.sql.  The
// model's events pass through three generators, one event at a time, and each leaves as a line of NDJSON.  What the
// documents' engine has no part in is left out: no token is checked, nothing is logged, retried or traced, no lease is
// renewed, and the product's own storing of the message, which their engine leaves to it, is not done either.

const PATH = /^\/v1\/sessions\/([^/]+)\/turns\/(\d+)$/;
const LEASE_MS = 60_000;
const STEP = 0;

export default {
  async fetch(request, env) {
    if (request.method === "GET") return Response.json(globalThis.benchCounts ?? {});
    const [, sessionId, turnIndex] = PATH.exec(new URL(request.url).pathname);
    const turn = { sessionId, tenantId: "bench", turnIndex: Number(turnIndex), ...(await request.json()) };
    return new Response(turnStream(env, turn), { headers: { "content-type": "application/x-ndjson" } });
  },
};

/** The engine: lines of a turn, driven from the stream's construction on. */
function turnStream(env, turn) {
  const { sessionId, tenantId, turnIndex } = turn;
  const encoder = new TextEncoder();
  return new ReadableStream({
    async start(controller) {
      const send = async (type, data) => {
        controller.enqueue(encoder.encode(JSON.stringify({ type, data }) + "\n"));
      };
      try {
        await send("session.run.started", { sessionId, tenantId, turnIndex });
        let replayed = false;
        for await (const { type, data } of durableTurn(new Store(env.DB, crypto.randomUUID()), turn, chatEvents(env, turn))) {
          replayed ||= type === "result";
          await send(type, data);
        }
        await send("session.run.completed", { sessionId, replayed });
      } catch (error) {
        await send("error", { message: error.message });
        await send("session.run.failed", { sessionId, message: error.message });
      }
      controller.close();
    },
  });
}

/** One step of one run: its events, and then its checkpoint; or the checkpoint's text, where there is one. */
async function* durableTurn(store, turn, events) {
  const runId = `chat:${turn.sessionId}:${turn.turnIndex}`;
  const completed = await store.startOrResume(runId, await hashOf(turn));
  if (completed.length) {
    yield { type: "result", data: { finalText: JSON.parse(completed[0].result_json).finalText } };
    await store.endRun(runId, null);
    return;
  }
  await store.beginStep(runId, `chat:turn-${turn.turnIndex}`);
  let finalText = "";
  for await (const event of events) {
    finalText += event.data.delta ?? "";
    yield event;
  }
  await store.completeStep(runId, { finalText });
  await store.endRun(runId, { metadata: { chars: finalText.length } });
}

/** What the model says, as a chat's events. */
async function* chatEvents(env, turn) {
  for await (const { choices, model, usage } of completion(env, turn)) {
    const delta = choices?.[0]?.delta?.content;
    if (delta) yield { type: "message.part.updated", data: { delta, part: { id: "text", type: "text" } } };
    if (usage) {
      const { prompt_tokens: tokensIn, completion_tokens: tokensOut } = usage;
      yield { type: "usage", data: { model, tokensIn, tokensOut } };
    }
  }
}

/** The objects of a streamed chat completion. */
async function* completion(env, { message, model }) {
  const response = await fetch(`${env.OPENAI_BASE_URL}/chat/completions`, {
    method: "POST",
    headers: { "content-type": "application/json", authorization: "Bearer bench" },
    body: JSON.stringify({ model, stream: true, messages: [{ role: "user", content: message }] }),
  });
  const decoder = new TextDecoder();
  let rest = "";
  for await (const chunk of response.body) {
    rest += decoder.decode(chunk, { stream: true });
    const frames = rest.split("\n\n");
    rest = frames.pop();
    for (const frame of frames) {
      if (!frame.startsWith("data: ")) continue;
      if (frame === "data: [DONE]") return;
      yield JSON.parse(frame.slice(6));
    }
  }
}

async function hashOf({ sessionId, tenantId, turnIndex, message, model }) {
  const text = JSON.stringify({ message, model, sessionId, tenantId, turnIndex });
  const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(text));
  return Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Runs and steps, one statement after the other. */
class Store {
  #db;
  #worker;

  constructor(db, worker) {
    this.#db = db;
    this.#worker = worker;
  }

  /** Takes the lease of a run, which is made if it is new; returns its completed steps.  Three statements. */
  async startOrResume(runId, hash) {
    const [now, until] = [iso(), iso(LEASE_MS)];
    const run = await this.#run(runId);
    if (run === null) {
      await this.#write(
        `INSERT INTO durable_runs (run_id, manifest_hash, project_id, status, created_at, updated_at,
                                   lease_holder_id, lease_expires_at, step_count)
         VALUES (?1, ?2, 'bench', 'running', ?3, ?3, ?4, ?5, 0)`,
        [runId, hash, now, this.#worker, until],
      );
    } else {
      if (run.manifest_hash !== hash) throw new Error("another manifest");
      const { meta } = await this.#write(
        `UPDATE durable_runs SET lease_holder_id = ?2, lease_expires_at = ?3, updated_at = ?4
         WHERE run_id = ?1 AND (lease_holder_id = ?2 OR lease_expires_at IS NULL OR lease_expires_at < ?4)`,
        [runId, this.#worker, until, now],
      );
      if (!meta.changes) throw new Error("the lease is held");
    }
    const { results } = await this.#db
      .prepare("SELECT * FROM durable_steps WHERE run_id = ?1 AND status = 'completed' ORDER BY step_index")
      .bind(runId)
      .all();
    return results;
  }

  /** Three statements. */
  async beginStep(runId, intent) {
    const now = iso();
    if (await this.#step(runId)) throw new Error("begun before");
    await this.#write(
      `INSERT INTO durable_steps (run_id, step_index, intent, kind, status, attempts, started_at)
       VALUES (?1, ?2, ?3, 'llm', 'running', 1, ?4)`,
      [runId, STEP, intent, now],
    );
    await this.#write("UPDATE durable_runs SET step_count = MAX(step_count, ?2 + 1), updated_at = ?3 WHERE run_id = ?1", [
      runId,
      STEP,
      now,
    ]);
  }

  /** Three statements. */
  async completeStep(runId, result) {
    const now = iso();
    await this.#write(
      `UPDATE durable_steps SET status = 'completed', result_json = ?3, completed_at = ?4
       WHERE run_id = ?1 AND step_index = ?2`,
      [runId, STEP, JSON.stringify(result), now],
    );
    await this.#write("UPDATE durable_runs SET updated_at = ?2 WHERE run_id = ?1", [runId, now]);
    return await this.#step(runId);
  }

  /** Two statements. */
  async endRun(runId, outcome) {
    await this.#write(
      `UPDATE durable_runs SET status = 'completed', completed_at = ?2, updated_at = ?2, outcome_json = ?3,
                               lease_holder_id = NULL, lease_expires_at = NULL
       WHERE run_id = ?1`,
      [runId, iso(), outcome && JSON.stringify(outcome)],
    );
    return await this.#run(runId);
  }

  #run(runId) {
    return this.#db.prepare("SELECT * FROM durable_runs WHERE run_id = ?1").bind(runId).first();
  }

  #step(runId) {
    return this.#db
      .prepare("SELECT * FROM durable_steps WHERE run_id = ?1 AND step_index = ?2")
      .bind(runId, STEP)
      .first();
  }

  #write(sql, values) {
    return this.#db.prepare(sql).bind(...values).run();
  }
}

function iso(later = 0) {
  return new Date(Date.now() + later).toISOString();
}
