/** Settings of a client. */
export interface ChatTurnSettings {
  /** Of the Worker, without a path: `https://chat.example.com`; "" for the page's own origin. */
  url?: string;
  /** The bearer token, or what returns it: it is called for every request, so a token may run out in mid-answer. */
  token?: string | (() => string | Promise<string>);
  /** In place of the global `fetch`. */
  fetch?: typeof fetch;
  /** Milliseconds without a byte after which a connection is taken for dead: by default three missed pings, as often as
   *  the service says that it pings, 45,000 where it does not say. */
  silenceMs?: number;
  /** Milliseconds without a line, over all connections, after which the client gives up: by default ten minutes. */
  patienceMs?: number;
}

/** How a turn is asked for. */
export interface AskOptions extends FollowOptions {
  /** The model to ask for; by default the deployment's. */
  model?: string;
  /** The caller's own, given to the product's hooks. */
  metadata?: Record<string, unknown>;
  /** `supersede` starts the turn anew if it was started with another message; `refuse`, the default, does not. */
  onMismatch?: "refuse" | "supersede";
  /** How the model is to answer; `tools` are those that the client does, see `tool.client`. */
  parameters?: Record<string, unknown>;
  /** Answers anew in place of a version, the one that counts: `Answer.version` of what is shown. */
  replace?: { kind: "regenerate" | "edit"; version: number };
  /** What happens while another turn of the session is open; by default what the deployment says. */
  whenBusy?: "queue" | "reject" | "interrupt" | "parallel";
}

/** How a turn is followed. */
export interface FollowOptions {
  /** Ends the waiting, not the turn: that is `cancel`. */
  signal?: AbortSignal;
  /** The `seq` of the last line that was seen, to go on behind it. */
  after?: number;
  /** Is called with the whole text so far, each time that it has changed. What it throws ends the waiting. */
  onText?: (text: string) => void;
  /** Is called with every line. */
  onLine?: (line: Line) => void;
}

/** A part of what is being said. */
export interface Part {
  id?: string;
  type?: "text" | "reasoning" | (string & {});
  /** The part as a whole, in place of what was said of it. */
  text?: string;
}

/** What one model call consumed. Unknown counts are left out. */
export interface Usage {
  model?: string;
  tokensIn?: number;
  tokensOut?: number;
  tokensCached?: number;
  tokensReasoning?: number;
  /** `length` and `content_filter`: the answer is not whole. */
  finishReason?: string;
  [name: string]: unknown;
}

/** Why an answer ended: `stop` where it is whole. */
export type FinishReason = "stop" | "length" | "content_filter" | "tool_calls" | "cancelled" | (string & {});

/** What a line says besides its type. */
export interface LineData {
  "session.run.queued": { sessionId: string; turnIndex: number; position: number };
  "session.run.started": { sessionId: string; tenantId: string; turnIndex: number };
  "session.run.restarted": { attempt: number; reason: string };
  "session.run.completed": { sessionId: string; version: number; replayed: boolean; finishReason?: FinishReason };
  "session.run.cancelled": {
    sessionId: string;
    version: number;
    reason: string;
    replayed: boolean;
    finishReason?: FinishReason;
  };
  /** With a `turnIndex` it is another turn that waits, before this one. */
  "session.run.suspended": {
    sessionId: string;
    version: number;
    key: string | null;
    wakeAt: string | null;
    turnIndex?: number;
  };
  "session.run.failed": { sessionId: string; code: string; message: string; retryable: boolean };
  "message.part.updated": { delta?: string; part?: Part };
  "tool.call": { toolCallId: string; toolName: string; args: unknown };
  "tool.approval": { toolCallId: string; toolName: string; args: unknown; key: string };
  "tool.client": { toolCallId: string; toolName: string; args: unknown; key: string };
  "tool.result": { toolCallId: string; toolName: string; result: unknown };
  "tool.error": { toolCallId: string; toolName: string; code: string; message: string };
  usage: Usage;
  result: { finalText: string };
  error: { code: string; message: string; retryable: boolean };
}

/** One line of a turn's log; products may add types of their own. */
export type Line =
  | { [Type in keyof LineData]: { type: Type; data: LineData[Type]; seq?: number; attempt?: number } }[keyof LineData]
  | { type: string & {}; data?: any; seq?: number; attempt?: number };

/** The answer as far as lines have told it. */
export class Answer {
  readonly text: string;
  readonly status: "queued" | "running" | "completed" | "cancelled" | "suspended";
  /** While it is queued: for how many turns of its session it waits. */
  readonly position?: number;
  /** Which version of its turn it is, from 1; known at its end. */
  readonly version?: number;
  /** Of the last model call. */
  readonly usage?: Usage;
  /** Why the last model call ended: `length` and `content_filter` mean that the answer is not whole. */
  readonly finishReason?: string;
  /** Of a suspended turn: the event that it waits for, which `approve` or `emit` give. */
  readonly waitsFor?: { key: string | null; wakeAt: string | null };
  /** Takes a line; says whether the text is another one now. */
  take(line: Line): boolean;
}

/** A turn's run, without its answer. */
export interface TurnView {
  runId: string;
  sessionId: string;
  turnIndex: number;
  status: "pending" | "running" | "completed" | "cancelled" | "failed" | "suspended";
  version: number;
  attempts: number;
  model: string | null;
  createdAt: string;
  updatedAt: string;
  completedAt: string | null;
  outcome: unknown;
  stream: string;
}

/** A stretch of a session's messages. */
export interface Messages {
  messages: {
    turnIndex: number;
    role: "user" | "assistant";
    content: string;
    createdAt: string;
    /** Of the turn's run: what the AI SDK's streams call the answer. */
    runId: string;
    /** Of the turn: which one counts. */
    version: number;
    finishReason?: FinishReason;
    /** On an answer that was stopped. */
    cancelled?: boolean;
  }[];
  /** Turns without an answer: a page that was reloaded follows the one that is `running`. */
  open: { turnIndex: number; message: string; status: TurnView["status"]; createdAt: string }[];
  /** The `before` of the page before; null for none. */
  next: number | null;
  /** How often any of this has changed; null where the deployment has no versions. */
  revision: number | null;
  /** Names this state of the session, for `known`; null where the deployment has no versions. */
  tag: string | null;
}

/** A version of a turn, without its answer. */
export interface Version {
  version: number;
  runId: string;
  /** Whether it is the one in the thread. */
  counts: boolean;
  replaces: number | null;
  kind: "regenerate" | "edit" | null;
  message: string;
  model: string | null;
  status: TurnView["status"];
  finishReason: FinishReason | null;
  createdAt: string;
  completedAt: string | null;
  stream: string;
}

/** One turn of a session. */
export interface Turn {
  /** Its run's id, once a response has told it; "" before. */
  readonly runId: string;
  /** Runs the turn, joins whoever runs it, or replays it, and resolves to its answer. Sending it again costs nothing. */
  ask(message: string, options?: AskOptions): Promise<Answer>;
  /** Follows a turn that somebody has begun, and resolves to its answer. */
  follow(options?: FollowOptions): Promise<Answer>;
  /** Every line of the turn, each once and in order, to the terminal one; without a message as `follow`. */
  lines(message?: string, options?: AskOptions): AsyncGenerator<Line, void, undefined>;
  /** Stops the turn for good; what it had said is kept. It may be sent again. */
  cancel(options?: { signal?: AbortSignal }): Promise<TurnView & { cancelRequested: boolean }>;
  show(options?: { signal?: AbortSignal }): Promise<TurnView>;
  /** Its versions, the first first. */
  versions(options?: { signal?: AbortSignal }): Promise<Version[]>;
  /** Lets a version count, and what followed it; refused while a turn of the session is open. It may be sent again. */
  activate(version: number, options?: { signal?: AbortSignal }): Promise<{ version: number }>;
  /** A ticket for the URL of an EventSource, which cannot send a token. */
  ticket(options?: { signal?: AbortSignal }): Promise<Record<string, unknown>>;
}

export class ChatTurnClient {
  constructor(settings?: ChatTurnSettings);
  /** The turn at an index of a session, from 0. */
  turn(session: string, index: number): Turn;
  messages(
    session: string,
    options?: { before?: number | null; limit?: number; signal?: AbortSignal },
  ): Promise<Messages>;
  /** The same, once it is another than the `known` one, which it waits for up to 30 s; undefined where it is not. */
  messages(
    session: string,
    options: { known: Messages | undefined; waitS?: number; before?: number | null; limit?: number; signal?: AbortSignal },
  ): Promise<Messages | undefined>;
  /** Gives a run the event that it waits for; the first under a key wins, so it may be sent again. */
  emit(runId: string, key: string, payload: unknown, options?: { signal?: AbortSignal }): Promise<Emitted>;
  /** Gives the result of a tool that the client does, JSON; `tool.client` has the key. */
  giveResult(runId: string, key: string, result: unknown, options?: { signal?: AbortSignal }): Promise<Emitted>;
  /** Allows a tool call that waits for it, or does not. */
  approve(
    runId: string,
    key: string,
    approved: boolean,
    reason?: string,
    options?: { signal?: AbortSignal },
  ): Promise<Emitted>;
}

export interface Emitted {
  /** Whether this was the first event under its key. */
  accepted: boolean;
  /** Of the first. */
  payload: unknown;
  emittedAt: string;
}

/** The service refused: the same request would be refused again, unless `retryable` says otherwise. */
export class ChatTurnError extends Error {
  readonly code: string;
  /** The HTTP status; 0 where a line told the error. */
  readonly status: number;
  /** The member of the request that is wrong. */
  readonly field?: string;
  /** Of `input_mismatch`, where another message is open at the index: the one to take. */
  readonly turnIndex?: number;
  readonly retryable: boolean;
}
