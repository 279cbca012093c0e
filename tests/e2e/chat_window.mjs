// What people do in a chat window, in two windows at once: node chat_window.mjs URL TOKEN SESSION
import assert from "node:assert/strict";

import { ChatTurnClient } from "../../clients/typescript/chatturn.js";
import { ChatThread } from "../../examples/chat/thread.js";

const [url, token, session] = process.argv.slice(2);
const shown = (thread) => thread.turns.map(({ question, answer }) => `${question}|${answer}`);
const statuses = (thread) => thread.turns.map(({ status }) => status);

async function until(condition, what) {
  const ends = Date.now() + 45_000;
  while (!condition()) {
    assert.ok(Date.now() < ends, `${what}: ${JSON.stringify([first.turns, second.turns])}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
const opened = (chat = session, options = {}) => {
  const thread = new ChatThread(new ChatTurnClient({ url, token }), chat, options);
  thread.open();
  return thread;
};
const both = (expected, what) =>
  until(() => [first, second].every((thread) => shown(thread).join() === expected.join()), what);

let first = opened();
let second = opened();
const told = {};

// Send; the second window sees the answer come, without having asked.
const sent = first.say("one.");
await until(() => second.turns[0]?.answer?.startsWith("re:"), "the second window reads along");
told.followed = second.turns[0].status;
await sent;
await both(["one.|re: one."], "sent");

// Type ahead: both messages wait for the one before them, and are answered in their order.
const slow = first.say("slow two.");
await until(() => first.turns[1]?.answer, "the second message is answered");
const ahead = first.say("three.");
await until(() => statuses(first)[2] === "queued", "the third message waits");
told.position = first.turns[2].position;
await Promise.all([slow, ahead]);
await both(["one.|re: one.", "slow two.|re: slow two.", "three.|re: three."], "typed ahead");

// Two windows say something at the same moment: one of them is first, and nobody is lost.
await Promise.all([first.say("four."), second.say("five.")]);
await until(() => first.turns.length === 5 && second.turns.length === 5, "both are there");
told.both = [...new Set(shown(first).slice(3))].sort();
assert.deepEqual(shown(first), shown(second));

// Stop keeps what was said.
const stopped = first.say("slow six.");
await until(() => first.turns[5]?.answer?.startsWith("re:"), "the sixth message is answered");
await second.stop(5);
await stopped;
await until(() => statuses(first)[5] === "cancelled", "it is stopped");
told.stopped = "re: slow six.".startsWith(first.turns[5].answer.trim());

// Regenerate, edit, and come back: what followed leaves the thread, and returns with its version.
await first.regenerate(5);
await until(() => shown(second)[5] === "slow six.|re: slow six.", "regenerated");
const before = shown(first);
await second.edit(0, "uno.");
await both(["uno.|re: uno."], "edited");
told.versions = (await first.versions(0)).map(({ version, counts, message }) => [version, counts, message]);
await first.activate(0, 1);
await both(before, "the old version is back");

// A new window, as after a reload.
first.close();
const third = opened();
await until(() => shown(third).join() === before.join(), "a new window shows the same");
third.close();
second.close();

// Where a message that finds another one being answered is refused: told which index to take, or when to come back.
[first, second] = [1, 2].map(() => opened(`${session}-refuses`, { whenBusy: "reject" }));
await Promise.all([first.say("four."), second.say("five.")]);
await until(() => first.turns.length === 2 && second.turns.length === 2, "both are there, one after the other");
assert.deepEqual(shown(first), shown(second));
told.refused = shown(first).sort();
first.close();
second.close();
console.log(JSON.stringify(told));
process.exit(0);
