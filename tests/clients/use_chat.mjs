// useChat's Chat, with each of its transports, outside a page: what a page does when it is visible again, this does
// when the stream broke off.
import { Chat } from "@ai-sdk/react";
import { WorkflowChatTransport } from "./.build/workflow.mjs";
import {
  DefaultChatTransport,
  isDynamicToolUIPart,
  lastAssistantMessageIsCompleteWithApprovalResponses as approved,
  lastAssistantMessageIsCompleteWithToolCalls as done,
} from "ai";

const [kind, json] = process.argv.slice(2);
const asked = JSON.parse(json);
const headers = { Authorization: `Bearer ${asked.token}` };
const errors = [];
const looked = [];

// The second POST brings the approval: its stream ends behind so many events.
let posts = 0;
async function cutting(url, init) {
  const response = await fetch(url, init);
  if (init?.method !== "POST" || ++posts !== 2 || asked.cut === undefined) return response;
  let left = asked.cut;
  const cut = new TransformStream({
    transform(bytes, controller) {
      for (const event of new TextDecoder().decode(bytes).split(/(?<=\n\n)/)) {
        if (event.startsWith("data") && left-- <= 0) return controller.terminate();
        controller.enqueue(new TextEncoder().encode(event));
      }
    },
  });
  return new Response(response.body.pipeThrough(cut), response);
}

const transports = {
  default: () => new DefaultChatTransport({ api: asked.url, headers, body: asked.body }),
  workflow: () =>
    new WorkflowChatTransport({
      api: asked.url,
      fetch: cutting,
      prepareSendMessagesRequest: ({ id, messages, trigger, messageId }) => ({
        body: { id, messages, trigger, messageId },
        headers: { ...headers, "Content-Type": "application/json" },
      }),
      prepareReconnectToStreamRequest: ({ api }) => ({ api, headers }),
    }),
  // As it is without a prepare function: no id, no content type.
  "workflow-bare": () =>
    new WorkflowChatTransport({
      api: asked.url,
      fetch: (url, init) => fetch(url, { ...init, headers: { ...init?.headers, ...headers } }),
    }),
};

// Versions 5 and 6 know no reset: a body that breaks off is replayed, and theirs to clear away is what they have of it.
const older = /^[56]$/.test(kind);

async function olderChat(init) {
  const { AbstractChat, DefaultChatTransport: Transport } = await import(`ai-${kind}`);
  class State {
    status = "ready";
    error = undefined;
    messages = init.messages;
    pushMessage = (message) => (this.messages = [...this.messages, message]);
    popMessage = () => (this.messages = this.messages.slice(0, -1));
    replaceMessage = (at, message) => (this.messages = this.messages.with(at, structuredClone(message)));
    snapshot = structuredClone;
  }
  class OlderChat extends AbstractChat {
    constructor() {
      super({ ...init, messages: undefined, state: new State() });
    }
  }
  const transport = new Transport({
    api: `${asked.url}?v=${kind}`,
    headers,
    body: asked.body,
    prepareReconnectToStreamRequest: ({ id }) => ({ api: `${asked.url}/${id}/stream?v=${kind}`, headers }),
  });
  init.transport = transport;
  return new OlderChat();
}

const settings = {
  id: asked.chat,
  messages: asked.messages,
  transport: older ? undefined : transports[kind](),
  sendAutomaticallyWhen: (options) => done(options) || approved(options),
  onToolCall: ({ toolCall }) => {
    looked.push(toolCall.input.at);
    // Not awaited: the SDK's stream waits for this call.
    void chat.addToolOutput({ tool: toolCall.toolName, toolCallId: toolCall.toolCallId, output: `[looked at ${toolCall.input.at}]` });
  },
  onError: (error) => errors.push(`${error.name}: ${error.message}`.slice(0, 200)),
};
let chat = older ? await olderChat(settings) : new Chat(settings);

// What a page does that is shown again: the thread as it is stored, then the stream of what is being answered.
async function comeBack() {
  const { messages, open } = await (await fetch(asked.thread, { headers })).json();
  const from = Math.min(...open.map((each) => each.turnIndex), Infinity);
  const bubble = (id, role, text) => ({ id, role, parts: [{ type: "text", text }] });
  chat.messages = [
    ...messages.filter((each) => each.turnIndex < from).map((each) => bubble(each.role === "user" ? `user-${each.turnIndex}` : each.runId, each.role, each.content)),
    ...open.map((each) => bubble(`user-${each.turnIndex}`, "user", each.message)),
  ];
  await chat.resumeStream();
}

const answer = () => chat.messages.filter((message) => message.role === "assistant");
const text = () =>
  answer()
    .flatMap((message) => message.parts)
    .filter((part) => part.type === "text")
    .map((part) => part.text)
    .join("");
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

async function run() {
  if (asked.stop_after) {
    const sent = chat.sendMessage({ text: asked.question });
    while (text().length < asked.stop_after) await pause(5);
    await fetch(asked.cancel, { method: "POST", headers });
    await chat.stop();
    await sent;
    await chat.resumeStream();
    return;
  }
  if (asked.approve !== undefined) {
    await chat.sendMessage({ text: asked.question });
    const waiting = () => answer().flatMap((message) => message.parts).filter((part) => part.state === "approval-requested");
    for (const part of waiting()) await chat.addToolApprovalResponse({ id: part.approval.id, approved: asked.approve });
    while (chat.status !== "ready" && chat.status !== "error") await pause(5);
    return;
  }
  if (asked.elsewhere) {
    await chat.sendMessage({ text: asked.question });
    const other = new Chat({ ...settings, messages: structuredClone(chat.messages) });
    await other.resumeStream();
    if (asked.elsewhere === "edit") await chat.sendMessage({ text: asked.new, messageId: chat.messages[0].id });
    else await chat.regenerate();
    chat = other;
    await comeBack();
    return;
  }
  if (asked.regenerate) {
    await chat.sendMessage({ text: asked.question });
    await chat.regenerate();
    return;
  }
  if (asked.edit) {
    await chat.sendMessage({ text: asked.edit });
    await chat.sendMessage({ text: asked.question, messageId: chat.messages[0].id });
    return;
  }
  if (asked.resume) await chat.resumeStream();
  else await chat.sendMessage({ text: asked.question });
  while (asked.body && chat.status !== "ready" && chat.status !== "error") await pause(5);
  for (let tries = 0; chat.status === "error" && tries < 60; tries++) {
    await pause(300);
    chat.clearError();
    if (older && chat.messages.at(-1)?.role === "assistant") chat.messages = chat.messages.slice(0, -1);
    await chat.resumeStream();
  }
}

await run();
console.log(
  JSON.stringify({
    text: text(),
    status: chat.status,
    bubbles: answer().length,
    tools: answer().flatMap((message) => message.parts.filter(isDynamicToolUIPart)).length,
    looked,
    states: answer().flatMap((message) => message.parts.map((part) => part.state).filter(Boolean)),
    ids: chat.messages.map((message) => message.id),
    errors,
  }),
);
process.exit(0);
