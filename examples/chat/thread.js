// The state of one chat window, for a page or a test to show: no DOM here. `docs/tutorial/chat-window.md` explains it.
//
// What is in the thread, the server says: the window loads it, and loads it again whenever it has changed. Only what
// is being answered at this moment is kept beside it.

const RELOAD_AFTER_MS = 1_000;

export class ChatThread {
  #client;
  #session;
  #show;
  #whenBusy;
  #closing = new AbortController();
  #page = { messages: [], open: [] };
  #live = new Map(); // by index: the turns that this window is reading, each { index, question, answer, status, turn }

  /**
   * Of a `ChatTurnClient` and a session. `show` is called with the thread each time that anything has changed;
   * `whenBusy` is what a message does while another one is answered.
   */
  constructor(client, session, { show = () => {}, whenBusy = "queue" } = {}) {
    this.#client = client;
    this.#session = session;
    this.#show = show;
    this.#whenBusy = whenBusy;
  }

  /** What is shown, in order: { index, question, answer, status, version?, position? }. */
  get turns() {
    const turns = new Map();
    for (const { turnIndex, role, content, version, cancelled } of this.#page.messages) {
      const turn = turns.get(turnIndex) ?? { index: turnIndex, version, status: "completed" };
      turn[role === "user" ? "question" : "answer"] = content;
      if (cancelled) turn.status = "cancelled";
      turns.set(turnIndex, turn);
    }
    for (const { turnIndex, message, status } of this.#page.open) {
      turns.set(turnIndex, { index: turnIndex, question: message, answer: "", status });
    }
    for (const { turn: _, ...live } of this.#live.values()) turns.set(live.index, live);
    return [...turns.values()].sort((one, other) => one.index - other.index);
  }

  /** Loads the thread and keeps it up to date, whoever changes it and wherever, until the window is closed. */
  async open() {
    let known;
    while (!this.#closing.signal.aborted) {
      try {
        const page = await this.#client.messages(this.#session, { known, waitS: 30, signal: this.#closing.signal });
        if (page === undefined) continue; // half a minute without a change
        known = page;
        this.#load(page);
      } catch (error) {
        if (!this.#closing.signal.aborted) await new Promise((resolve) => setTimeout(resolve, RELOAD_AFTER_MS));
      }
    }
  }

  /** Leaves; what is being answered goes on. */
  close() {
    this.#closing.abort();
  }

  /** Sends a message; while another is answered, it waits for its turn. Rejects where the server refuses it for good. */
  async say(question) {
    const last = this.turns.at(-1);
    await this.#ask(last === undefined ? 0 : last.index + 1, question, { whenBusy: this.#whenBusy });
  }

  /** Asks something else in place of a turn; what followed it leaves the thread. */
  edit(index, question) {
    return this.#ask(index, question, { replace: { kind: "edit", version: this.#turn(index).version } });
  }

  /** Asks the same again. */
  regenerate(index) {
    const { question, version } = this.#turn(index);
    return this.#ask(index, question, { replace: { kind: "regenerate", version } });
  }

  /** Stops a turn that is being answered, or that waits. */
  async stop(index) {
    await (this.#live.get(index)?.turn ?? this.#client.turn(this.#session, index)).cancel();
  }

  /** The versions of a turn; `counts` marks the one that is shown. */
  versions(index) {
    return this.#client.turn(this.#session, index).versions();
  }

  /** Shows another version, and what followed it. */
  async activate(index, version) {
    await this.#client.turn(this.#session, index).activate(version);
  }

  async #ask(index, question, options) {
    const turn = this.#client.turn(this.#session, index);
    try {
      await this.#read(turn, { index, question }, (heard) => turn.ask(question, { ...options, ...heard }));
    } catch (error) {
      // Another window was quicker, and its message has this index: ours is the next one.
      if (error.code !== "input_mismatch" || options.replace) throw error;
      await this.#ask(error.turnIndex ?? (await this.#nextIndex()), question, options);
    }
  }

  async #read(turn, { index, question }, read) {
    const live = { index, question, answer: "", status: "running", turn };
    const signal = this.#closing.signal;
    this.#live.set(index, live);
    this.#changed();
    try {
      const onText = (text) => this.#changed(Object.assign(live, { answer: text }));
      await read({ signal, onText, onLine: (line) => this.#hear(live, line) });
      this.#load(await this.#client.messages(this.#session, { signal }));
    } finally {
      this.#live.delete(live.index);
      this.#changed();
    }
  }

  #hear(live, { type, data }) {
    if (type === "session.run.queued") Object.assign(live, { status: "queued", position: data.position });
    else if (type === "session.run.started") Object.assign(live, { status: "running", position: undefined });
    else return;
    if (data.turnIndex !== live.index) {
      this.#live.delete(live.index); // its place was taken: the server asks it at the next one
      live.index = data.turnIndex;
      this.#live.set(live.index, live);
    }
    this.#changed();
  }

  #load(page) {
    this.#page = page;
    for (const { turnIndex, message, status } of page.open) {
      if (this.#live.has(turnIndex) || status === "failed" || status === "suspended") continue;
      const turn = this.#client.turn(this.#session, turnIndex);
      // Somebody else's, ours from before a reload: read along.
      this.#read(turn, { index: turnIndex, question: message }, (heard) => turn.follow(heard)).catch(() => {});
    }
    this.#changed();
  }

  async #nextIndex() {
    const { messages, open } = await this.#client.messages(this.#session, { signal: this.#closing.signal });
    return Math.max(-1, ...[...messages, ...open].map(({ turnIndex }) => turnIndex)) + 1;
  }

  #turn(index) {
    return this.turns.find((turn) => turn.index === index);
  }

  #changed() {
    this.#show(this.turns);
  }
}
