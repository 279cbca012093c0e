// Who may ask this machine's own Worker: a name that only this machine has.

const OWN = /^(localhost|[a-z0-9-]+\.localhost|127\.0\.0\.1|\[::1\])(:[0-9]+)?$/i;

/**
 * Returns the refusal of a request that names another host; nothing for one that may pass.
 *
 * A page of a foreign site can let its own name lead to this machine (DNS rebinding), and is then of the same origin
 * for the browser: only the name in the request tells it apart.
 */
export function refusal(request) {
  const host = request.headers.get("host");
  if (host === null || OWN.test(host)) return undefined;
  return new Response("This Worker runs for localhost only.\n", { status: 421 });
}
