// Sends each request to one of two Workers that share a database: two isolates, as at the edge.

export default {
  fetch(request, env) {
    return env[request.headers.get("x-isolate") ?? "A"].fetch(request);
  },
};
