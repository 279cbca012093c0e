// Whether Cloudflare could store what Python holds when all modules of the Worker are imported.
//
// The upload of a Worker takes a snapshot of Python's memory.  A JavaScript object that Python holds then is stored as
// its path from `globalThis`, which Pyodide's own tracking Proxy has written down.  One without a path ends the upload.

import { pathOf } from "./boot.mjs";

/**
 * Imports every module of the Worker; returns what Python holds that cannot be stored, each with who holds it.
 *
 * `given` are the objects that the platform hands to every Worker, and puts back by itself.
 */
export function checkSnapshot(python, bootstrap, entry, given) {
  const api = python._api;
  const known = new Set([...given, ...api.getExpectedKeys(), api.abortSignalAny]);
  const modules = bootstrap.import_everything(entry).toJs();
  const faults = held(python).filter((object) => !known.has(object) && pathOf(object) === undefined);
  const holders = bootstrap.holders((object) => faults.indexOf(object), faults.length).toJs();
  return { modules, faults: faults.map((object, number) => ({ holder: holders.get(number) ?? null, kind: kindOf(object) })) };
}

/**
 * Every object that Python holds: Pyodide keeps them in a table, in which a place that is free has null.
 *
 * The first places are Pyodide's own.
 */
function held({ _api: api, _module: module }) {
  const found = [];
  for (let place = api.getExpectedKeys().length; ; place++) {
    try {
      const object = module.__hiwire_get(place);
      if (object !== null) found.push(object);
    } catch {
      return found; // behind the table's end
    }
  }
}

function kindOf(object) {
  const name = object.constructor?.name ?? "";
  return typeof object === "function" ? `function ${object.name ?? ""}`.trim() : `object of class ${name}`;
}
