// Writes down the memory of an interpreter that has just started: Pyodide, here in Node.
//
//     node snapshot.mjs STDLIB.zip TARGET
//
// Cloudflare does the same when a Worker is deployed. A boot that reads it back does without CPython's start; what
// depends on the Worker is not in it. `host/snapshot.mjs` puts the pages of zeros, half of it, back in.

import { writeFileSync } from "node:fs";
import { loadPyodide } from "pyodide";
import { pack } from "./host/snapshot.mjs";

const [stdlib, target] = process.argv.slice(2);

// What the interpreter remembers of its process is what it would see in workerd.
process.argv[1] = "./this.program";
const env = {
  HOME: "/session",
  LANG: "en.UTF-8",
  // As in Cloudflare's snapshots: the order of a set never depends on the process.
  PYTHONHASHSEED: "111",
};

const python = await loadPyodide({ stdLibURL: stdlib, env, _makeSnapshot: true });
python.runPython("import sys; sys.path.remove(''); del sys"); // it is put there again by whoever reads the snapshot
writeFileSync(target, pack(python.makeMemorySnapshot()));
