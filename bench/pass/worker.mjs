// *pass*: hands the upstream's body on as it is. No parsing, no store: what the platform itself costs.

export default {
  async fetch(request, env) {
    if (request.method === "GET") return new Response("ok");
    const { message, model } = await request.json();
    const upstream = await fetch(`${env.OPENAI_BASE_URL}/chat/completions`, {
      method: "POST",
      headers: { "content-type": "application/json", authorization: "Bearer bench" },
      body: JSON.stringify({ model, stream: true, messages: [{ role: "user", content: message }] }),
    });
    return new Response(upstream.body, { headers: { "content-type": "text/event-stream" } });
  },
};
