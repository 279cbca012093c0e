// OpenAI's SDK on chatturn: one address and one header more, and no answer is lost, doubled or paid twice.
import { randomUUID } from "node:crypto";

import OpenAI from "openai";

const client = new OpenAI({ baseURL: `${process.env.CHATTURN_URL}/v1`, apiKey: process.env.CHATTURN_TOKEN });

// Leaving does not stop the turn: a cancel does, and what was said is kept.
let stop;
process.on("SIGINT", async () => {
  if (stop) await client.post(`/sessions/${stop[0]}/turns/${stop[1]}/cancel`);
  process.exit(0);
});

/** Returns the answer; a stream that breaks off is asked for again under its key. Another key: another answer. */
async function ask(question, key) {
  for (;;) {
    let text = "";
    try {
      const { data: stream, response } = await client.chat.completions
        .create(
          { model: "default", messages: [{ role: "user", content: question }], stream: true },
          { headers: { "Idempotency-Key": key } },
        )
        .withResponse();
      stop = response.headers.get("x-workflow-run-id").split(":").slice(-2);
      for await (const chunk of stream) {
        text += chunk.choices[0]?.delta.content ?? "";
        process.stdout.write(`\r${text}`);
        if (chunk.choices[0]?.finish_reason) return text;
      }
    } catch (error) {
      // Final; what may pass the SDK has tried again by itself.
      if (error.status || ["cancelled", "suspended"].includes(error.code)) throw error;
      console.error(`\n${error.message} Asking again.`);
    }
    await new Promise((resolve) => setTimeout(resolve, 500));
  }
}

const [question, key = randomUUID()] = process.argv.slice(2);
await ask(question, key);
