// Put in front of a Worker: its D1 is BENCH_AWAY_MS milliseconds further away, and each time that it is asked counts.

import { env } from "cloudflare:workers";

const away_ms = Number(env.BENCH_AWAY_MS ?? 0);
const counts = (globalThis.benchCounts = { roundTrips: 0 });

/** Replaces methods that ask the database by such as wait before they do. */
function further(prototype, names) {
  for (const name of names) {
    const ask = prototype[name];
    prototype[name] = async function (...given) {
      counts.roundTrips++;
      if (away_ms) await scheduler.wait(away_ms);
      return await ask.apply(this, given);
    };
  }
}

further(Object.getPrototypeOf(env.DB), ["batch", "exec"]);
further(Object.getPrototypeOf(env.DB.prepare("SELECT 1")), ["first", "run", "all", "raw"]);
