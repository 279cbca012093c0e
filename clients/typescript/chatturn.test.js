// node --test: against a server that says and does what a test wants, over real connections.
import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer } from "node:http";
import { test } from "node:test";

import { Answer, ChatTurnClient, ChatTurnError } from "./chatturn.js";

const line = (type, data, seq, attempt = 1) => `${JSON.stringify({ type, data, seq, attempt })}\n`;
const started = line("session.run.started", {}, 0);
const word = (text, seq, attempt) =>
  line("message.part.updated", { delta: text, part: { id: "text", type: "text" } }, seq, attempt);
const completed = (seq, attempt) => line("session.run.completed", { replayed: false }, seq, attempt);
const problem = (status, members) => (response) => {
  response.writeHead(status, { "content-type": "application/problem+json" });
  response.end(JSON.stringify({ code: "x", detail: "a sentence", retryable: false, ...members }));
};
const says =
  (...texts) =>
  async (response) => {
    response.writeHead(200, { "content-type": "application/x-ndjson", "x-workflow-run-id": "chat:a:s:0" });
    for (const text of texts) {
      response.write(text);
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
    response.end();
  };
const breaksOff =
  (...texts) =>
  async (response) => {
    response.writeHead(200, {});
    for (const text of texts) response.write(text);
    await new Promise((resolve) => setTimeout(resolve, 20));
    response.destroy();
  };
const hangs =
  (...texts) =>
  (response) => {
    response.writeHead(200, {});
    for (const text of texts) response.write(text);
  };

/** A server that answers one request after the other as it is told, and keeps what it was asked. */
async function serving(t, ...answers) {
  const asked = [];
  const server = createServer(async (request, response) => {
    let body = "";
    for await (const chunk of request) body += chunk;
    asked.push({ method: request.method, url: request.url, body: body && JSON.parse(body), headers: request.headers });
    const answer = answers.length > 1 ? answers.shift() : answers[0];
    await answer(response);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  t.after(() => {
    server.closeAllConnections();
    server.close();
  });
  const url = `http://127.0.0.1:${server.address().port}`;
  return { asked, client: (settings) => new ChatTurnClient({ url, token: "t", ...settings }) };
}

test("an answer comes as it is said", async (t) => {
  const { asked, client } = await serving(t, says(started, word("Hel", 1), '{"type":"ping"}\n', word("lo", 2), completed(3)));
  const texts = [];
  const turn = client().turn("a session", 0);
  const answer = await turn.ask("hi", { onText: (text) => texts.push(text), model: "m", metadata: { a: 1 } });

  assert.deepEqual([answer.text, answer.status, texts], ["Hello", "completed", ["Hel", "Hello"]]);
  assert.deepEqual(asked[0].body, { message: "hi", follow: true, model: "m", metadata: { a: 1 } });
  assert.deepEqual([asked[0].url, asked[0].headers.authorization], ["/v1/sessions/a%20session/turns/0", "Bearer t"]);
  assert.equal(turn.runId, "chat:a:s:0");
});

test("it comes back behind what it has seen, wherever the connection broke", async (t) => {
  const whole = started + word("grüß ", 1) + word("dich", 2) + completed(3);
  const bytes = Buffer.from(whole);
  const cuts = Array.from({ length: Math.ceil(bytes.length / 7) }, (_, at) => 7 * at);
  const one = async (cut) => {
    const seen = bytes.subarray(0, cut).toString().split("\n").length - 2;
    const rest = whole.split("\n").slice(seen + 1, -1).map((each) => `${each}\n`);
    const { asked, client } = await serving(t, breaksOff(bytes.subarray(0, cut)), says(rest.join("")));
    const answer = await client().turn("s", 0).ask("hi");

    assert.equal(answer.text, "grüß dich");
    assert.equal(asked[1].url, seen < 0 ? "/v1/sessions/s/turns/0" : `/v1/sessions/s/turns/0/stream?after=${seen}`);
  };
  await Promise.all(cuts.map(one));
});

test("an end of the body without a terminal line is no end", async (t) => {
  const { client } = await serving(t, says(started, word("a", 1)), says(word("b", 2), completed(3)));
  assert.equal((await client().turn("s", 0).ask("hi")).text, "ab");
});

test("another attempt begins anew, and no line comes twice", async (t) => {
  const restarted = line("session.run.restarted", { attempt: 2, reason: "lease_lapsed" }, 10_001, 2);
  const { client } = await serving(
    t,
    breaksOff(started, word("lost", 1)),
    says(word("lost", 1), restarted, word("kept", 10_002, 2), completed(10_003, 2)),
  );
  const seqs = [];
  const answer = await client().turn("s", 0).ask("hi", { onLine: (each) => seqs.push(each.seq) });

  assert.deepEqual([answer.text, seqs], ["kept", [0, 1, 10_001, 10_002, 10_003]]);
});

test("a connection that is silent for three pings is dead", async (t) => {
  const { client } = await serving(t, hangs(started, word("a", 1)), says(word("b", 2), completed(3)));
  assert.equal((await client({ silenceMs: 60 }).turn("s", 0).ask("hi")).text, "ab");
});

test("the service says how often it pings", async (t) => {
  const often = (response) => {
    response.writeHead(200, { "x-ping-ms": "20" });
    response.write(started + word("a", 1));
  };
  const { client } = await serving(t, often, says(word("b", 2), completed(3)));
  assert.equal((await client().turn("s", 0).ask("hi")).text, "ab");
});

test("a failure that may pass is tried again, as another attempt", async (t) => {
  const failed = (retryable, seq) =>
    line("session.run.failed", { code: "backend_timeout", message: "too long", retryable }, seq);
  const { asked, client } = await serving(
    t,
    says(started, failed(true, 1)),
    problem(503, { retryable: true }),
    says(word("b", 10_002, 2), completed(10_003, 2)),
  );
  assert.equal((await client().turn("s", 0).ask("hi")).text, "b");
  assert.deepEqual(asked.map((each) => each.method), ["POST", "POST", "POST"]);

  const { client: other } = await serving(t, says(started, failed(false, 1)));
  await assert.rejects(other().turn("s", 0).ask("hi"), { code: "backend_timeout", message: "too long" });
  const { client: follower } = await serving(t, says(started, failed(true, 1)));
  await assert.rejects(follower().turn("s", 0).follow(), { code: "backend_timeout", retryable: true });
});

test("a refusal is final, and says what is wrong", async (t) => {
  const { asked, client } = await serving(t, problem(422, { field: "model" }));
  const refused = client().turn("s", 0).ask("hi");

  await assert.rejects(refused, (error) => error instanceof ChatTurnError && error.field === "model" && error.status === 422);
  assert.equal(asked.length, 1);
});

test("an address that leads nowhere is refused at once", () => {
  for (const url of ["localhost:8787", "ftp://a.test", "a.test/api"]) assert.throws(() => new ChatTurnClient({ url }), TypeError);
  for (const url of [undefined, "", "/api", "http://a.test", "HTTPS://a.test/"]) new ChatTurnClient({ url });
});

test("a page of a proxy is no refusal", async (t) => {
  const page = (response) => response.writeHead(502, { "content-type": "text/html" }).end("<h1>Bad gateway</h1>");
  const { client } = await serving(t, page, says(started, completed(1)));
  assert.equal((await client().turn("s", 0).ask("hi")).status, "completed");
});

test("a token may run out in the middle", async (t) => {
  const tokens = ["old", "old", "new"];
  const { asked, client } = await serving(
    t,
    breaksOff(started, word("a", 1)),
    problem(401, { code: "unauthenticated" }),
    says(word("b", 2), completed(3)),
  );
  const answer = await client({ token: async () => tokens.shift() }).turn("s", 0).ask("hi");

  assert.equal(answer.text, "ab");
  assert.deepEqual(asked.map((each) => each.headers.authorization), ["Bearer old", "Bearer old", "Bearer new"]);
  const { asked: twice, client: stale } = await serving(t, problem(401, { code: "unauthenticated" }));
  await assert.rejects(stale({ token: () => "old" }).turn("s", 0).ask("hi"), { code: "unauthenticated" });
  assert.equal(twice.length, 2);
});

test("an abort ends the waiting, in a connection and in a pause", async (t) => {
  for (const answer of [hangs(started), problem(503, { retryable: true })]) {
    const { client } = await serving(t, answer);
    const signal = AbortSignal.timeout(80);
    await assert.rejects(client().turn("s", 0).ask("hi", { signal }), { name: "TimeoutError" });
  }
});

test("what the caller's own code throws is not taken for a broken connection", async (t) => {
  const { asked, client } = await serving(t, says(started, word("a", 1), completed(2)));
  const onText = () => {
    throw new TypeError("fetch is not mine");
  };
  await assert.rejects(client().turn("s", 0).ask("hi", { onText }), { message: "fetch is not mine" });
  assert.equal(asked.length, 1);
});

test("a service that never answers is given up", async (t) => {
  const { client } = await serving(t, problem(503, { retryable: true }));
  await assert.rejects(client({ patienceMs: 200 }).turn("s", 0).ask("hi"), { code: "no_answer", retryable: true });
});

test("React Native's fetch has no stream: the body comes as a whole", async (t) => {
  const { client } = await serving(t, breaksOff(started, word("a", 1)), says(started, word("a", 1), completed(2)));
  const native = async (url, init) => {
    const response = await fetch(url, init);
    return { ok: response.ok, status: response.status, headers: response.headers, text: () => response.text(), json: () => response.json() };
  };
  assert.equal((await client({ fetch: native }).turn("s", 0).ask("hi")).text, "a");
});

test("approvals, cancels and messages are one request each", async (t) => {
  const { asked, client } = await serving(t, (response) => response.writeHead(200).end("{}"));
  const turn = client().turn("s", 3);
  await turn.cancel();
  await turn.show();
  await client().messages("s", { before: 3, limit: 10 });
  await client().approve("chat:a:b%2F:0", "approve:1.1.0", false, "no");

  assert.deepEqual(
    asked.map((each) => `${each.method} ${each.url}`),
    [
      "POST /v1/sessions/s/turns/3/cancel",
      "GET /v1/sessions/s/turns/3",
      "GET /v1/sessions/s/messages?before=3&limit=10",
      "POST /v1/runs/chat%3Aa%3Ab%252F%3A0/events/approve%3A1.1.0",
    ],
  );
  assert.deepEqual(asked[3].body, { payload: { approved: false, reason: "no" } });
});

test("a suspended turn says what it waits for", async (t) => {
  const waits = line("session.run.suspended", { key: "approve:1.1.0", wakeAt: null }, 1);
  const { client } = await serving(t, says(started, waits));
  const answer = await client().turn("s", 0).ask("hi");

  assert.deepEqual([answer.status, answer.waitsFor], ["suspended", { key: "approve:1.1.0", wakeAt: null }]);
});

test("a turn that waits says so, and is followed where it was asked", async (t) => {
  const queued = `${JSON.stringify({ type: "session.run.queued", data: { turnIndex: 3, position: 2 } })}\n`;
  const at = (path) => (response) => {
    response.writeHead(200, { "x-workflow-run-id": "chat:a:s:3~2" });
    path.forEach((text) => response.write(text));
    setTimeout(() => response.destroy(), 20);
  };
  const ended = line("session.run.completed", { replayed: false, version: 2 }, 3);
  const { asked, client } = await serving(t, at([queued]), at([started, word("a", 1)]), says(word("b", 2), ended));
  const turn = client().turn("s", 1);
  const seen = [];
  const options = { whenBusy: "queue", replace: { kind: "edit", version: 1 }, parameters: { seed: 1 } };
  const watch = new Answer();
  const answer = await turn.ask("hi", { ...options, onLine: (each) => (watch.take(each), seen.push([watch.status, watch.position])) });

  assert.deepEqual(seen.slice(0, 2), [["queued", 2], ["running", undefined]]);
  assert.deepEqual([answer.text, answer.version], ["ab", 2]);
  assert.deepEqual(asked[0].body, { message: "hi", follow: true, when_busy: "queue", replace: options.replace, parameters: { seed: 1 } });
  assert.deepEqual(
    asked.map((each) => `${each.method} ${each.url}`),
    ["POST /v1/sessions/s/turns/1", "POST /v1/sessions/s/turns/1", "GET /v1/sessions/s/turns/3/stream?version=2&after=1"],
  );
});

test("a tool of the client's is given its result", async (t) => {
  const { asked, client } = await serving(t, problem(200, { accepted: true }));
  await client().giveResult("chat:a:s:0", "tool:call_1", [1]);
  assert.deepEqual([asked[0].url, asked[0].body], ["/v1/runs/chat%3Aa%3As%3A0/events/tool%3Acall_1", { payload: { result: [1] } }]);
});
