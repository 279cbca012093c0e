// The SDK for OpenAI of npm, as an application uses it: a request, and the same one again where it broke off.
import OpenAI from "openai";

const asked = JSON.parse(process.argv[2]);
const client = new OpenAI({ baseURL: asked.url, apiKey: asked.token });
const errors = [];

async function ask() {
  const stream = await client.chat.completions.create(
    { model: "default", messages: asked.messages, stream: true },
    { headers: { "Idempotency-Key": asked.key } },
  );
  let text = "";
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta.content ?? "";
    if (chunk.choices[0]?.finish_reason) return text;
    if (asked.leave_after && text.length > asked.leave_after) return text;
  }
  throw new Error("the stream ended without a finish_reason");
}

/** Loops over tools as the SDK itself does. */
async function askWithTools() {
  const said = [];
  const look = async ({ at }) => (said.push(` [looked at ${at}] `), `[looked at ${at}]`);
  const parameters = { type: "object", properties: { at: { type: "string" } }, required: ["at"] };
  const tool = { type: "function", function: { name: "look", description: "Looks.", parameters, parse: JSON.parse, function: look } };
  const runner = client.chat.completions.runTools({ model: "default", messages: asked.messages, stream: true, tools: [tool] });
  runner.on("content", (delta) => said.push(delta));
  await runner.done();
  return said.join("");
}

for (let tries = 0; tries < 30; tries++) {
  try {
    console.log(JSON.stringify({ text: await (asked.tools ? askWithTools() : ask()), errors }));
    process.exit(0);
  } catch (error) {
    errors.push(`${error.name}: ${error.message}`.slice(0, 200));
    await new Promise((resolve) => setTimeout(resolve, 500));
  }
}
console.error(errors.join("\n"));
process.exit(1);
