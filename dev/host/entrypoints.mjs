// The JavaScript classes workerd sees, each standing for a class of the Python entry module.
// Mirrors `python-entrypoint-helper.ts` of workerd.

import * as cloudflareWorkersModule from "cloudflare:workers";
import * as cloudflareSocketsModule from "cloudflare:sockets";
import { bootPyodide, replaceTimers } from "./boot.mjs";
import { refusal } from "./hosts.mjs";
import { digestOf, mount } from "./sources.mjs";
import sources from "./sources.tar";
import bootstrapSource from "./bootstrap.txt";
import { checkSnapshot } from "./snapshot_check.mjs";
import { CHECKS_SNAPSHOT, ENTRY } from "./settings.mjs";

const KINDS = {
  WorkerEntrypoint: cloudflareWorkersModule.WorkerEntrypoint,
  DurableObject: cloudflareWorkersModule.DurableObject,
  WorkflowEntrypoint: cloudflareWorkersModule.WorkflowEntrypoint,
};

// Handlers that the runtime calls with its own arguments, more of them than a method may want.
const RELAXED = new Set(["fetch", "connect", "test"]);
const UNCONVERTED = {
  WorkerEntrypoint: new Set(["connect"]),
  DurableObject: new Set(["alarm", "webSocketMessage", "webSocketClose", "webSocketError"]),
  WorkflowEntrypoint: new Set(["run"]),
};

const patchedContexts = new WeakSet();

/**
 * Keeps a Python awaitable given to `ctx.waitUntil` alive until it is done.
 *
 * The proxy that crosses the border is destroyed when the call returns; a copy is not.
 */
function patchWaitUntil(ctx) {
  if (Object.prototype.toString.call(ctx) !== "[object ExecutionContext]") return;
  if (patchedContexts.has(ctx)) return;
  patchedContexts.add(ctx);
  const waitUntil = ctx.waitUntil.bind(ctx);
  ctx.waitUntil = (awaitable) => {
    const owned = typeof awaitable?.copy === "function" ? awaitable.copy() : awaitable;
    waitUntil(
      (async () => {
        try {
          await owned;
        } finally {
          owned?.destroy?.();
        }
      })(),
    );
  };
}

/** The SDK's `patch_env`: shows `patch` in the importable `env` while the generator is open. */
function* patchEnvHelper(patch) {
  const { env } = cloudflareWorkersModule;
  const saved = new Map();
  for (const [name, value] of patch instanceof Map ? patch : Object.entries(patch)) {
    saved.set(name, Object.getOwnPropertyDescriptor(env, name));
    Object.defineProperty(env, name, { value, configurable: true, enumerable: true, writable: true });
  }
  try {
    yield;
  } finally {
    for (const [name, before] of saved) {
      if (before) Object.defineProperty(env, name, before);
      else delete env[name];
    }
  }
}

async function start() {
  const python = await bootPyodide({ tracked: CHECKS_SNAPSHOT });
  replaceTimers();
  mount(python.FS, sources, "/session/metadata");
  const flags = { ...Cloudflare.compatibilityFlags };
  const helper = {
    cloudflareWorkersModule,
    cloudflareSocketsModule,
    doAnImport: (name) => import(name),
    patchWaitUntil,
    patch_env_helper: patchEnvHelper,
  };
  python.registerJsModule("_cloudflare_compat_flags", flags);
  python.registerJsModule("_pyodide_entrypoint_helper", helper);
  const bootstrap = python.runPython("import types; types.ModuleType('bootstrap')");
  python.runPython(bootstrapSource, { globals: bootstrap.__dict__, filename: "bootstrap.py" });
  bootstrap.set_up_search_path();
  bootstrap.forbid_early_randomness();
  // From here on C that asks for entropy meets workerd's refusal, which ends the interpreter, as it does on Cloudflare.
  if (CHECKS_SNAPSHOT) {
    // What the platform gives every Worker is found again by name.
    const given = [flags, helper, ...Object.values(helper), cloudflareWorkersModule.env];
    return { report: checkSnapshot(python, bootstrap, ENTRY, given) };
  }
  const classes = await bootstrap.load.callPromising(ENTRY);
  // Looked up once: it takes a tenth of a millisecond.
  return { bootstrap, classes, callMethod: bootstrap.call_method };
}

// `dev/run.py` waits for it: requests reach the new sources from here on.
console.log(`chatturn: sources ${digestOf(sources)}`);

let runtime;
let startupError;
try {
  runtime = await start();
} catch (error) {
  // Not rethrown: the server stays up to show the traceback until the source is mended.
  startupError = String(error.message ?? error);
  console.error(`chatturn: the Worker did not start\n${startupError}`);
}

/** Enters Python on a stack of its own, so that `run_sync` may suspend it. */
function callPython(relaxed, callable, args) {
  return callable.callWithOptions({ relaxed, promising: true }, ...args);
}

let begun = false;

async function instantiate(className, args) {
  if (!begun) runtime.bootstrap.before_first_request();
  begun = true;
  return await callPython(false, runtime.classes[className].construct, args);
}

async function callMethod(kind, instance, name, args) {
  if (typeof instance[name] !== "function") throw new TypeError(`Method ${name} does not exist`);
  if (UNCONVERTED[kind].has(name)) return await callPython(true, instance[name], args);
  return await callPython(false, runtime.callMethod, [RELAXED.has(name), instance, name, ...args]);
}

function notStarted() {
  return new Response(startupError, { status: 500, headers: { "content-type": "text/plain;charset=utf-8" } });
}

function report() {
  return Response.json(runtime.report);
}

/** The JavaScript class for the Python class `className`; one Python instance for each of its own. */
export function entrypoint(className, expectedKind) {
  const exported = runtime?.classes?.[className];
  if (runtime?.classes && exported?.kind !== expectedKind) {
    startupError = `the entry module ${ENTRY} exports no ${expectedKind} named ${className}`;
    console.error(`chatturn: ${startupError}`);
  }
  const Stand = class extends KINDS[expectedKind] {
    constructor(...args) {
      super(...args);
      if (runtime?.report) return new Proxy(this, { get: (_, name) => (name === "fetch" ? report : undefined) });
      if (startupError) return new Proxy(this, { get: (_, name) => (name === "fetch" ? notStarted : undefined) });
      const instance = instantiate(className, args);
      instance.catch(() => {}); // Reported by the call that awaits it.
      return new Proxy(this, {
        get(target, name, receiver) {
          if (typeof name !== "string") return Reflect.get(target, name, receiver);
          return async (...given) => {
            const refused = expectedKind === "WorkerEntrypoint" && name === "fetch" && refusal(given[0]);
            return refused || (await callMethod(expectedKind, await instance, name, given));
          };
        },
      });
    }
  };
  // workerd looks at the prototype to learn which handlers exist; the proxy above answers them.
  for (const name of exported?.methods ?? ["fetch"]) Stand.prototype[name] = () => {};
  return Stand;
}
