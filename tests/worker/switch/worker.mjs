// Sends each request to one of several Workers that share a database: isolates, as at the edge.

export default {
  fetch(request, env) {
    return env[request.headers.get("x-isolate") ?? env.FIRST].fetch(request);
  },
};
