// Boots Pyodide while this module is evaluated, the only moment at which workerd allows
// WebAssembly to be compiled from bytes and `eval` to run.
//
// Pyodide expects a browser or Node.  `withBrowserShims` shows it a browser for the length of
// the boot and takes every shim away again, so that no Worker code ever sees one.

import wasm from "./pyodide.asm.wasm";
import stdlib from "./python_stdlib.zip";
import lock from "./pyodide-lock.txt";
import { unpack } from "./snapshot.mjs";
import snapshot from "./snapshot.bin";

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

let pathSymbol;

/** `Symbol`, which tells us the one under which Pyodide's tracking Proxy has an object's path. */
const watchedSymbol = new Proxy(Symbol, {
  apply(target, self, [description]) {
    const made = Reflect.apply(target, self, [description]);
    if (description === "getAccessorList") pathSymbol = made;
    return made;
  },
});

/** The path from `globalThis` by which Python was given `object`, undefined if it was not. */
export function pathOf(object) {
  const path = object[pathSymbol];
  // What was made with `new` inherits from a prototype that has a path; put back, it would be that prototype.
  return path !== undefined && Object.getPrototypeOf(object)?.[pathSymbol] !== path ? path : undefined;
}

/** Runs `action` with properties replaced, `[target, name, value]` each, and puts them back. */
async function withShims(shims, action) {
  const undo = shims.map(([target, name, value]) => {
    const original = Object.getOwnPropertyDescriptor(target, name);
    Object.defineProperty(target, name, { value, configurable: true, writable: true });
    return () => (original ? Object.defineProperty(target, name, original) : delete target[name]);
  });
  try {
    return await action();
  } finally {
    for (const restore of undo.reverse()) restore();
  }
}

/**
 * The Python interpreter, with nothing of ours mounted yet.
 *
 * If `tracked`, Python is shown the globals as Cloudflare shows them while it makes a snapshot: behind a Proxy that
 * writes down by which path each object was reached.  That costs a start without our own snapshot.
 */
export function bootPyodide({ tracked = false } = {}) {
  const browser = [
    [globalThis, "window", globalThis],
    [globalThis, "document", { createElement() {} }],
    [globalThis, "sessionStorage", {}],
    [globalThis, "process", undefined],
    [globalThis, "addEventListener", () => {}],
    [globalThis, "location", { href: INDEX_URL, toString: () => INDEX_URL }],
    [globalThis, "fetch", bundledFetch],
    [globalThis, "Symbol", watchedSymbol],
    [crypto, "getRandomValues", predictableBytes],
    // workerd has compiled the module already, and has no calls that promise to.
    [
      WebAssembly,
      "instantiateStreaming",
      async (_response, imports) => ({
        module: wasm,
        instance: new WebAssembly.Instance(wasm, imports),
      }),
    ],
    [
      WebAssembly,
      "instantiate",
      async (source, imports) => {
        if (source instanceof WebAssembly.Module) return new WebAssembly.Instance(source, imports);
        const module = new WebAssembly.Module(source);
        return { module, instance: new WebAssembly.Instance(module, imports) };
      },
    ],
  ];
  return withShims(browser, async () => {
    await import("./pyodide.asm.js.mjs");
    const { loadPyodide } = await import("./pyodide.mjs");
    return await loadPyodide({
      indexURL: INDEX_URL,
      packageBaseUrl: INDEX_URL,
      ...(tracked
        ? { env: { HOME: "/session", LANG: "en.UTF-8", PYTHONHASHSEED: "111" }, _makeSnapshot: true }
        : { env: { HOME: "/session" }, _loadSnapshot: unpack(snapshot) }), // the rest of env is in the snapshot
      stdout: (line) => console.log(line),
      stderr: (line) => console.error(line),
    });
  });
}

/**
 * Replaces the timers as Cloudflare's bootstrap does before it imports the entry module, for good.
 *
 * Of the arguments only two are passed on, and without a time it is a microtask, whose id takes nothing back.
 */
export function replaceTimers() {
  const original = globalThis.setTimeout.bind(globalThis);
  globalThis.setTimeout = function setTimeout(handler, timeout) {
    if (timeout || typeof handler === "string") return original(handler, timeout);
    queueMicrotask(() => handler());
    return 0;
  };
}
