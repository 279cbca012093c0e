// Boots Pyodide while this module is evaluated, the only moment at which workerd allows
// WebAssembly to be compiled from bytes and `eval` to run.
//
// Pyodide expects a browser or Node.  `withBrowserShims` shows it a browser for the length of
// the boot and takes every shim away again, so that no Worker code ever sees one.

import wasm from "./pyodide.asm.wasm";
import stdlib from "./python_stdlib.zip";
import lock from "./pyodide-lock.txt";

const INDEX_URL = "http://pyodide.invalid/";

/** Everything Pyodide downloads, answered from the modules of this Worker. */
async function bundledFetch(resource) {
  const url = String(resource.url ?? resource);
  if (url.endsWith("python_stdlib.zip")) return { ok: true, arrayBuffer: async () => stdlib };
  if (url.endsWith("pyodide-lock.json")) return { ok: true, json: async () => JSON.parse(lock) };
  // The .wasm itself: `instantiateStreaming` below ignores the response.
  return { ok: true };
}

/** Entropy is refused outside a request; Python's hash seed and `random` are set again later. */
function predictableBytes(array) {
  for (let i = 0; i < array.length; i++) array[i] = (i * 7 + 13) & 255;
  return array;
}

async function withBrowserShims(boot) {
  const undo = [];
  const shim = (target, name, value) => {
    const original = Object.getOwnPropertyDescriptor(target, name);
    undo.push(() =>
      original ? Object.defineProperty(target, name, original) : delete target[name],
    );
    Object.defineProperty(target, name, { value, configurable: true, writable: true });
  };

  shim(globalThis, "window", globalThis);
  shim(globalThis, "document", { createElement() {} });
  shim(globalThis, "sessionStorage", {});
  shim(globalThis, "process", undefined);
  shim(globalThis, "addEventListener", () => {});
  shim(globalThis, "location", { href: INDEX_URL, toString: () => INDEX_URL });
  shim(globalThis, "fetch", bundledFetch);
  shim(crypto, "getRandomValues", predictableBytes);
  // workerd has the module compiled already and does not offer the promise-returning calls.
  shim(WebAssembly, "instantiateStreaming", async (_response, imports) => ({
    module: wasm,
    instance: new WebAssembly.Instance(wasm, imports),
  }));
  shim(WebAssembly, "instantiate", async (source, imports) => {
    if (source instanceof WebAssembly.Module) return new WebAssembly.Instance(source, imports);
    const module = new WebAssembly.Module(source);
    return { module, instance: new WebAssembly.Instance(module, imports) };
  });
  try {
    return await boot();
  } finally {
    for (const restore of undo.reverse()) restore();
  }
}

/** The Python interpreter, with nothing of ours mounted yet. */
export function bootPyodide() {
  return withBrowserShims(async () => {
    await import("./pyodide.asm.js.mjs");
    const { loadPyodide } = await import("./pyodide.mjs");
    return await loadPyodide({
      indexURL: INDEX_URL,
      packageBaseUrl: INDEX_URL,
      // As in Cloudflare's snapshots: the order of a set never depends on the process.
      env: { HOME: "/session", PYTHONHASHSEED: "111" },
      stdout: (line) => console.log(line),
      stderr: (line) => console.error(line),
    });
  });
}
