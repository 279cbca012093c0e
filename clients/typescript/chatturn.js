// A client of chatturn, for browsers, React Native, Node and Deno: one module, no dependency, no build.
//
// It asks for a turn and comes back with the last `seq` that it has seen until there is a terminal line, whatever
// happens to connections, Workers and databases meanwhile. Types and explanations are in chatturn.d.ts.

const TERMINAL = new Set([
  "session.run.completed",
  "session.run.cancelled",
  "session.run.failed",
  "session.run.suspended",
]);
const MISSED_PINGS = 3;
const PING_EVERY_MS = 15_000;
const FIRST_PAUSE_MS = 250;
const LONGEST_PAUSE_MS = 10_000;
const LONGEST_RETRY_AFTER_MS = 60_000;

/** The service refused: the same request would be refused again. */
export class ChatTurnError extends Error {
  constructor(problem) {
    super(problem.detail ?? problem.message ?? problem.title ?? "the service refused");
    this.name = "ChatTurnError";
    this.code = problem.code ?? "unexpected";
    this.status = problem.status ?? 0;
    this.field = problem.field;
    this.turnIndex = problem.turnIndex;
    this.retryable = problem.retryable === true;
  }
}

export class ChatTurnClient {
  #settings;

  constructor({ url, token, fetch: fetcher, silenceMs, patienceMs = 600_000 } = {}) {
    // Else each request would fail as one does that finds no connection, and be tried again.
    if (url && !/^(https?:\/)?\//i.test(url)) throw new TypeError("url must begin with https://, http:// or /");
    this.#settings = { url: (url ?? "").replace(/\/+$/, ""), token, fetcher, silenceMs, patienceMs };
  }

  /** The turn at an index of a session. */
  turn(session, index) {
    return new Turn(this.#settings, session, index);
  }

  /** A stretch of a session's messages, and its turns without an answer; undefined where it is as `known` has it. */
  async messages(session, { before, limit, known, waitS, signal } = {}) {
    const query = new URLSearchParams();
    if (before !== undefined && before !== null) query.set("before", String(before));
    if (limit !== undefined) query.set("limit", String(limit));
    if (waitS !== undefined) query.set("wait", String(waitS));
    const asked = query.size ? `?${query}` : "";
    const path = `/v1/sessions/${encodeURIComponent(session)}/messages${asked}`;
    const headers = known?.tag ? { "If-None-Match": known.tag } : {};
    const response = await send(this.#settings, "GET", path, undefined, signal, headers);
    if (response.status === 304) return undefined;
    if (!response.ok) throw await refusalOf(response);
    return { ...(await response.json()), tag: response.headers.get("etag") };
  }

  /** Gives a run the event that it waits for; the first under a key wins, so it may be sent again. */
  emit(runId, key, payload, { signal } = {}) {
    const path = `/v1/runs/${encodeURIComponent(runId)}/events/${encodeURIComponent(key)}`;
    return request(this.#settings, "POST", path, { body: { payload }, signal });
  }

  /** Allows a tool call that waits for it, or does not. */
  approve(runId, key, approved, reason, options) {
    return this.emit(runId, key, reason === undefined ? { approved } : { approved, reason }, options);
  }

  /** Gives the result of a tool that the client does. */
  giveResult(runId, key, result, options) {
    return this.emit(runId, key, { result }, options);
  }
}

class Turn {
  #settings;
  #asked;
  #runId = "";

  constructor(settings, session, index) {
    this.#settings = settings;
    this.#asked = `/v1/sessions/${encodeURIComponent(session)}/turns/${index}`;
  }

  /** Where the turn is: a message that found its place taken is at another index, and the run's id says so. */
  get #path() {
    const index = /:(\d+)(?:~\d+)?$/.exec(this.#runId)?.[1];
    return index === undefined ? this.#asked : this.#asked.replace(/\d+$/, index);
  }

  /** Which version of the turn the run is; undefined before that is known. */
  get #version() {
    const found = /:\d+(?:~(\d+))?$/.exec(this.#runId);
    return found ? Number(found[1] ?? 1) : undefined;
  }

  /** The run's id, once a response has told it. */
  get runId() {
    return this.#runId;
  }

  /** Runs the turn, joins whoever runs it, or replays it: resolves to its answer. */
  async ask(message, options = {}) {
    return answerOf(this.lines(message, options), options);
  }

  /** Follows a turn that somebody has begun: resolves to its answer. */
  async follow(options = {}) {
    return answerOf(this.lines(undefined, options), options);
  }

  /** Every line of the turn, each once and in order, to the terminal one. */
  async *lines(message, options = {}) {
    const { signal, after } = options;
    const progress = new Progress(message, options, after);
    let pauseMs = 0;
    let refreshed = false;
    let heardAt = Date.now();
    while (!progress.over) {
      if (pauseMs) await pause(pauseMs, signal);
      throwIfAborted(signal);
      const connection = new Connection(signal, this.#settings.silenceMs);
      let retryAfterMs = 0;
      try {
        const { method, path, body } = progress.request(this.#asked, this.#path, this.#version);
        const response = await send(this.#settings, method, path, body, connection.signal);
        this.#runId = response.headers.get("x-workflow-run-id") ?? this.#runId;
        if (!response.ok) {
          const refusal = await refusalOf(response);
          // A token is asked for anew at every request: one that had just run out is worth a second try.
          if (response.status === 401 && typeof this.#settings.token === "function" && !refreshed) {
            refreshed = true;
            continue;
          }
          if (!refusal.retryable) throw refusal;
          retryAfterMs = retryAfter(response);
        } else {
          if (this.#settings.silenceMs === undefined) connection.expectPings(response);
          for await (const line of linesOf(response, connection)) {
            refreshed = false;
            heardAt = Date.now();
            if (!progress.take(line)) continue;
            pauseMs = 0;
            yield line;
            if (progress.over || progress.anew) break;
          }
        }
      } catch (error) {
        throwIfAborted(signal);
        if (!(error instanceof Broken) && !isNetworkError(error)) throw error;
      } finally {
        connection.end();
      }
      if (progress.over) return;
      if (Date.now() - heardAt > this.#settings.patienceMs) {
        throw new ChatTurnError({ code: "no_answer", message: "The service does not answer.", retryable: true });
      }
      pauseMs = Math.max(retryAfterMs, nextPause(pauseMs));
    }
  }

  /** Stops the turn for good; what it had said is kept. It may be sent again. */
  cancel({ signal } = {}) {
    return request(this.#settings, "POST", `${this.#path}/cancel`, { signal });
  }

  /** The turn's run, without its answer. */
  show({ signal } = {}) {
    return request(this.#settings, "GET", this.#path, { signal });
  }

  /** Its versions, the first first, without their answers. */
  async versions({ signal } = {}) {
    return (await request(this.#settings, "GET", `${this.#path}/versions`, { signal })).versions;
  }

  /** Lets a version count, and what followed it; it may be sent again. */
  activate(version, { signal } = {}) {
    return request(this.#settings, "POST", `${this.#path}/versions/${version}/activate`, { signal });
  }

  /** A ticket for the stream, for the URL of an EventSource, which cannot send a token. */
  ticket({ signal } = {}) {
    return request(this.#settings, "POST", `${this.#path}/ticket`, { signal });
  }
}

/** Where a reader is in a turn's log: pure. */
class Progress {
  constructor(message, { model, metadata, parameters, onMismatch, replace, whenBusy } = {}, after) {
    this.message = message;
    this.body = { message, follow: true };
    if (model !== undefined) this.body.model = model;
    if (metadata !== undefined) this.body.metadata = metadata;
    if (parameters !== undefined) this.body.parameters = parameters;
    if (onMismatch !== undefined) this.body.on_mismatch = onMismatch;
    if (replace !== undefined) this.body.replace = replace;
    if (whenBusy !== undefined) this.body.when_busy = whenBusy;
    this.seq = after;
    this.begun = message === undefined;
    this.over = false;
    this.anew = false;
  }

  /** What to ask: for the turn, as long as nothing of it was seen; then for what is behind that, of the same version. */
  request(asked, path, version) {
    if (!this.begun) return { method: "POST", path: asked, body: this.body };
    const query = new URLSearchParams();
    if (version !== undefined) query.set("version", String(version));
    if (this.seq !== undefined) query.set("after", String(this.seq));
    return { method: "GET", path: `${path}/stream${String(query) && `?${query}`}` };
  }

  /** Takes a line; says whether it is news. */
  take(line) {
    if (line.type === "ping") return false;
    this.anew = false;
    if (line.seq !== undefined) {
      if (this.seq !== undefined && line.seq <= this.seq) return false;
      this.seq = line.seq;
      this.begun = true;
    }
    if (!TERMINAL.has(line.type)) return true;
    if (line.type === "session.run.failed" && line.data?.retryable === true && this.message !== undefined) {
      this.anew = true; // whoever has the question asks again, for another attempt; a follower cannot
      this.begun = false;
      return true;
    }
    this.over = true;
    return true;
  }
}

async function send(settings, method, path, body, signal, more = {}) {
  const token = typeof settings.token === "function" ? await settings.token() : settings.token;
  const headers = { Accept: "application/x-ndjson, application/json", ...more };
  if (token) headers.Authorization = `Bearer ${token}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const fetcher = settings.fetcher ?? globalThis.fetch;
  return fetcher(settings.url + path, { method, headers, body: JSON.stringify(body), signal });
}

async function request(settings, method, path, { body, signal } = {}) {
  const response = await send(settings, method, path, body, signal);
  if (!response.ok) throw await refusalOf(response);
  return response.json();
}

async function refusalOf(response) {
  let problem = {};
  try {
    problem = await response.json();
  } catch {
    // A proxy's page, or nothing.
  }
  if (typeof problem?.code === "string") return new ChatTurnError({ ...problem, status: response.status });
  const passing = response.status >= 500 || response.status === 429; // not ours, so nobody says
  const message = `The service answered ${response.status}.`;
  return new ChatTurnError({ code: "unexpected", message, status: response.status, retryable: passing });
}

/** One connection, which ends with the caller's wish or after too long a silence. */
class Connection {
  #controller = new AbortController();
  #timer;
  #outer;
  #stop = () => this.#controller.abort();

  constructor(outer, silenceMs = MISSED_PINGS * PING_EVERY_MS) {
    this.#outer = outer;
    this.silenceMs = silenceMs;
    outer?.addEventListener("abort", this.#stop, { once: true });
    this.heard();
  }

  get signal() {
    return this.#controller.signal;
  }

  heard() {
    clearTimeout(this.#timer);
    if (this.silenceMs < Infinity) this.#timer = setTimeout(this.#stop, this.silenceMs);
  }

  /** The service says how often it pings. */
  expectPings(response) {
    const everyMs = Number(response.headers.get("x-ping-ms"));
    if (everyMs > 0) this.silenceMs = MISSED_PINGS * everyMs;
    this.heard();
  }

  /** From here on nothing can be heard before the end. */
  deaf() {
    clearTimeout(this.#timer);
    this.silenceMs = Infinity;
  }

  end() {
    clearTimeout(this.#timer);
    this.#outer?.removeEventListener("abort", this.#stop);
    this.#controller.abort();
  }
}

/** The connection broke: come back. */
class Broken extends Error {}

async function* linesOf(response, connection) {
  let rest = "";
  for await (const text of textsOf(response, connection)) {
    const pieces = (rest + text).split("\n"); // LF only: a text may hold other line ends
    rest = pieces.pop(); // a line without its LF is not a line
    for (const piece of pieces) if (piece) yield JSON.parse(piece);
  }
}

/** The body as texts: read, not iterated, which Safari cannot; and as a whole where there is no stream at all. */
async function* textsOf(response, connection) {
  if (!response.body?.getReader) {
    connection.deaf();
    yield await broken(response.text());
    return;
  }
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  try {
    for (;;) {
      const { done, value } = await broken(reader.read());
      if (done) return;
      connection.heard();
      yield decoder.decode(value, { stream: true });
    }
  } finally {
    reader.cancel().catch(() => undefined);
  }
}

async function broken(promise) {
  try {
    return await promise;
  } catch (error) {
    throw new Broken("the connection broke", { cause: error });
  }
}

/** `fetch` rejects with a TypeError where there is no connection, and with an AbortError where ours was given up. */
function isNetworkError(error) {
  return error instanceof TypeError || error?.name === "AbortError" || error?.name === "TimeoutError";
}

function throwIfAborted(signal) {
  if (signal?.aborted) throw signal.reason ?? new DOMException("The turn is not waited for any more.", "AbortError");
}

function nextPause(lastMs) {
  const mostMs = lastMs ? Math.min(3 * lastMs, LONGEST_PAUSE_MS) : 2 * FIRST_PAUSE_MS;
  return FIRST_PAUSE_MS + Math.random() * (mostMs - FIRST_PAUSE_MS); // jitter: not all come back at once
}

function retryAfter(response) {
  const seconds = Number(response.headers.get("retry-after") ?? 0);
  return Number.isFinite(seconds) ? Math.min(seconds * 1000, LONGEST_RETRY_AFTER_MS) : 0;
}

function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const done = () => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", stop);
    };
    const stop = () => {
      done();
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      done();
      resolve();
    }, ms);
    signal?.addEventListener("abort", stop, { once: true });
  });
}

/** The answer as far as lines have told it. */
export class Answer {
  #parts = new Map();
  #attempt = 0;
  #whole;

  text = "";
  status = "running";
  usage;
  waitsFor;
  finishReason;
  position;
  version;

  /** Takes a line; says whether the text is another one now. */
  take(line) {
    const before = this.text;
    const data = line.data ?? {};
    if ((line.attempt ?? 0) > this.#attempt) this.#begin(line.attempt);
    this.version = data.version ?? this.version;
    switch (line.type) {
      case "session.run.queued":
        this.status = "queued";
        this.position = data.position;
        break;
      case "session.run.started":
        this.status = "running";
        this.position = undefined;
        break;
      case "message.part.updated":
        this.#part(data);
        break;
      case "tool.result":
      case "tool.error":
        this.#parts.clear(); // what was said before was on the way to the tool
        break;
      case "result":
        this.#whole = data.finalText;
        break;
      case "usage":
        this.usage = data;
        this.finishReason = data.finishReason;
        break;
      case "session.run.completed":
        this.status = "completed";
        break;
      case "session.run.cancelled":
        this.status = "cancelled";
        break;
      case "session.run.suspended":
        this.status = "suspended";
        this.waitsFor = { key: data.key, wakeAt: data.wakeAt };
        break;
    }
    this.text = this.#whole ?? [...this.#parts.values()].join("");
    return this.text !== before;
  }

  #begin(attempt) {
    this.#attempt = attempt;
    this.#parts.clear();
    this.#whole = undefined;
  }

  #part(data) {
    if ((data.part?.type ?? "text") !== "text") return;
    const id = data.part?.id ?? "text";
    const said = this.#parts.get(id) ?? "";
    this.#parts.set(id, data.delta ? said + data.delta : (data.part?.text ?? said));
  }
}

async function answerOf(lines, { onText, onLine } = {}) {
  const answer = new Answer();
  let last;
  for await (const line of lines) {
    last = line;
    const changed = answer.take(line);
    onLine?.(line);
    if (changed) onText?.(answer.text);
  }
  if (last?.type === "session.run.failed") throw new ChatTurnError(last.data ?? {});
  return answer;
}
